"""Vision-RWKV's spatial mixing: RWKV-4's WKV over both directions, in O(T) without a loop over tokens.

Source: arXiv 2403.02308, equations 5 to 8; OpenGVLab/Vision-RWKV
``classification/mmcls_custom/models/backbones/vrwkv.py`` (VRWKV_SpatialMix). Parameter names are the checkpoints'.

Per channel, token t reads the mean of all values, token i with weight exp(k_i - (|t - i| - 1) decay), itself with
exp(k_t + bonus). Weights of pairs are symmetric in t and i, and for i < t as for i > t a product of one factor each:
forward and backward pass are the same running sums.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import init
from core.layers.context import Context
from core.layers.registry import token_mixers
from core.layers.token_shift import TokenShift, mix_shift

LIMIT = 30.0
"""What the running sums take of |decay| x tokens and of |bonus|: e^30 keeps the smallest weight that counts, and its
gradient, well inside float32, whatever the keys."""

_MASKED = -1e30  # a key that weighs nothing, yet can be subtracted from itself
_PIECE = 256  # tokens whose running sum stays in a core's cache


def bi_wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """The mean of all values for each token, see the module's text. Differentiable in everything, once.

    On a CPU, outside torch.compile, parameters beyond :data:`LIMIT` go through :func:`bi_wkv_recurrence`. Elsewhere
    nothing looks at them, and those beyond it count as the limit.

    Args:
        k, v: (B, T, C), any float dtype; computed in float32, float64 stays.
        decay, bonus: per token, that is Vision-RWKV's parameters divided by the number of tokens; they broadcast to
            (B, 1, C). A negative decay grows with the distance.

    Returns:
        (B, T, C) in the dtype of v.
    """
    precise = torch.promote_types(v.dtype, torch.float32)
    inputs = [x.to(precise) for x in (k, v, decay, bonus)]
    tokens, (_, _, decay, bonus) = k.shape[1], inputs
    if torch.compiler.is_compiling() or k.device.type != "cpu":
        inputs[2:] = decay.clamp(-LIMIT / tokens, LIMIT / tokens), bonus.clamp(-LIMIT, LIMIT)
    elif float(decay.detach().abs().max()) * tokens > LIMIT or float(bonus.detach().abs().max()) > LIMIT:
        return bi_wkv_recurrence(*inputs).to(v.dtype)
    return _BiWKV.apply(*inputs).to(v.dtype)


def bi_wkv_recurrence(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """The same token by token with running maxima: right for any input, and slow. Arguments as of `bi_wkv`."""
    forward = _before(k, v, decay)
    backward = [part.flip(1) for part in _before(k.flip(1), v.flip(1), decay)]
    own = (k + bonus).detach()
    top = torch.maximum(torch.maximum(forward[0], backward[0]), own)
    itself = (k + bonus - top).exp()
    sides = [(part[0] - top).exp() for part in (forward, backward)]
    total = sides[0] * forward[1] + sides[1] * backward[1] + itself * v
    return total / (sides[0] * forward[2] + sides[1] * backward[2] + itself)


def _before(k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each token: the largest exponent of those before it, their weighted sum and their weights' sum, scaled."""
    decay = decay.expand(k.shape[0], 1, k.shape[2])[:, 0]
    top = torch.full_like(k[:, 0], -math.inf).detach()
    total, weight = torch.zeros_like(top), torch.zeros_like(top)
    rows = [(top, total, weight)]
    for key, value in zip(k[:, :-1].unbind(1), v[:, :-1].unbind(1), strict=True):
        new = torch.maximum(top - decay, key).detach()
        old, fresh = (top - decay - new).exp(), (key - new).exp()
        top, total, weight = new, old * total + fresh * value, old * weight + fresh
        rows.append((top, total, weight))
    tops, totals, weights = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
    return tops, totals, weights


class _BiWKV(torch.autograd.Function):
    """The running sums, with a backward of their own: autograd would keep a dozen tensors of the values' size."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
        ctx.save_for_backward(k, v, decay, bonus)
        pair = _weighted(k, v)
        total, weight = _gather(pair, *_sums(pair, decay), bonus).unbind(2)
        return total / weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        k, v, decay, bonus = ctx.saved_tensors
        pair = _weighted(k, v)
        before, after = _sums(pair, decay)
        total, weight = _gather(pair, before, after, bonus).unbind(2)
        dtotal = grads[0] / weight
        dread = torch.stack((dtotal, -dtotal * (total / weight)), dim=2)
        # The weights are symmetric in t and i: gradients return the way the values came.
        dbefore, dafter = _sums(dread, decay)
        dpair = _gather(dread, dbefore, dafter, bonus)
        # Two tokens' distance is the difference of their places: its moment is one of each place.
        place = _places(pair)
        ddecay = (place + 0.5) * (pair * dafter + dread * after) - (place - 0.5) * (dread * before + pair * dbefore)
        dbonus = pair * dread * bonus.exp().unsqueeze(-2)
        dk = (dpair * pair).sum(2)
        dv = dpair[:, :, 0] * pair[:, :, 1]
        return dk, dv, _reduce(ddecay, decay), _reduce(dbonus, bonus)


def _weighted(k: Tensor, v: Tensor) -> Tensor:
    """(B, T, 2, C): the values times their weights, and the weights, the largest of a channel being 1."""
    weight = (k - k.amax(1, keepdim=True)).exp()
    return torch.stack((weight * v, weight), dim=2)


def _places(x: Tensor) -> Tensor:
    """(T, 1, 1): each token's place, counted from the middle, where the exponents are smallest."""
    return (torch.arange(x.shape[1], device=x.device, dtype=x.dtype) - (x.shape[1] - 1) / 2)[:, None, None]


def _sums(x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, 2, C) -> for each token the decayed sum of those before it, and of those after it."""
    exponent = decay.unsqueeze(-2) * _places(x)
    rising, falling = exponent.exp(), exponent.neg().exp()
    before = _running_sum(x * rising)
    after = _running_sum((x * falling).flip(1)).flip(1)
    before, after = (before * falling)[:, :-1], (after * rising)[:, 1:]
    return F.pad(before, (0, 0, 0, 0, 1, 0)), F.pad(after, (0, 0, 0, 0, 0, 1))


def _running_sum(x: Tensor) -> Tensor:
    """Cumulative over dim 1; long ones piece by piece, since a column of the whole does not fit a cache."""
    tokens = x.shape[1]
    if tokens <= 2 * _PIECE:
        return x.cumsum(1)
    pieces = -(-tokens // _PIECE)
    x = F.pad(x, (0, 0, 0, 0, 0, pieces * _PIECE - tokens)).unflatten(1, (pieces, _PIECE)).cumsum(2)
    past = x[:, :-1, -1].cumsum(1)
    return (x + F.pad(past, (0, 0, 0, 0, 1, 0))[:, :, None]).flatten(1, 2)[:, :tokens]


def _gather(x: Tensor, before: Tensor, after: Tensor, bonus: Tensor) -> Tensor:
    """What every token reads: the two sums and itself."""
    return torch.addcmul(before + after, x, bonus.exp().unsqueeze(-2))


def _reduce(grad: Tensor, parameter: Tensor) -> Tensor:
    """(B, T, 2, C) summed to what one parameter sees."""
    return grad.sum(2).sum_to_size(parameter.shape)


@token_mixers.register("bi_wkv")
class BiWKV(nn.Module):
    """Vision-RWKV's spatial mix: output(sigmoid(receptance) * bi_wkv(key, value)), each read off its own token shift.

    All tokens see each other: there is no state, and ``scan`` is not used.

    Args:
        dim: width C.
        layer_id, num_layers: place in the stack, for the initialisation.
        head_dim, scan: accepted as every mixer's, not used.
        token_shift: a name of :data:`core.layers.token_shift.TOKEN_SHIFTS`; Vision-RWKV's is "quad", its quarters taken
            from the whole width.
        key_norm: a LayerNorm on what `bi_wkv` returns (Vision-RWKV's large models; the name is theirs).

    Raises:
        ValueError: an unknown token shift, or a quad shift of a width that 4 does not divide.
    """

    def __init__(
        self,
        dim: int,
        *,
        layer_id: int = 0,
        num_layers: int = 1,
        head_dim: int = 64,
        token_shift: str = "quad",
        scan: str = "bidirectional",
        key_norm: bool = False,
    ) -> None:
        super().__init__()
        del head_dim, scan
        self.depth = init.Depth(layer_id, num_layers)
        self.token_shift = TokenShift(token_shift)
        if token_shift == "quad" and dim % 4:
            raise ValueError(f"the quad shift needs a width divisible by 4, got {dim}")
        self.spatial_decay, self.spatial_first = (nn.Parameter(torch.empty(dim)) for _ in range(2))
        shifts = token_shift != "none"
        self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r = (
            nn.Parameter(torch.empty(1, 1, dim)) if shifts else None for _ in range(3)
        )
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.key_norm = nn.LayerNorm(dim) if key_norm else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Vision-RWKV's starting values ("fancy")."""
        dim, up, down = self.spatial_decay.numel(), self.depth.up, self.depth.down
        channel = torch.arange(dim, dtype=torch.float64)
        line, ratio = channel / max(dim - 1, 1), (channel / dim).view(1, 1, -1)
        self.spatial_decay.copy_(-5 + 8 * line ** (0.7 + 1.3 * up))
        self.spatial_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        mixes = (ratio**down, ratio**down + 0.3 * up, ratio ** (0.5 * down))
        for mix, start in zip((self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r), mixes, strict=True):
            if mix is not None:
                mix.copy_(start)
        for linear in (self.key, self.value, self.receptance, self.output):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        if self.key_norm is not None:
            self.key_norm.reset_parameters()

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), no state, the context unchanged.

        Padding (``ctx.mask``) weighs nothing, and a row's length is the number of its real tokens.

        Raises:
            ValueError: a state or resets, which a mean over all tokens cannot take; a context without the shift's grid.
        """
        ctx = ctx or Context()
        if state:
            raise ValueError("bi_wkv reads all tokens at once and cannot go on from a state: give it whole sequences")
        if ctx.reset is not None:
            raise ValueError("bi_wkv takes no resets: give it one sequence per row, padded and with ctx.mask")
        shifted, _ = self.token_shift(x, None, ctx)
        # The checkpoints' mix is the share of the token itself.
        xk, xv, xr = (mix_shift(shifted, x, m) for m in (self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r))
        k, v, gate = self.key(xk), self.value(xv), torch.sigmoid(self.receptance(xr))
        length: Tensor | int = x.shape[1]
        if ctx.mask is not None:
            k = k.to(torch.promote_types(k.dtype, torch.float32)).masked_fill(~ctx.mask[..., None], _MASKED)
            length = ctx.mask.sum(1).clamp(min=1)[:, None, None]
        y = bi_wkv(k, v, self.spatial_decay / length, self.spatial_first / length)
        if self.key_norm is not None:
            y = self.key_norm(y)
        return self.output(gate * y), {}, ctx
