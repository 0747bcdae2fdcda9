"""Token shift: what each token sees of its neighbours before any mixing.

Causal: RWKV's own. Quad-directional: Vision-RWKV's Q-Shift in its per-head form (arXiv 2403.02308, section 3.2;
OpenGVLab/Vision-RWKV ``vrwkv6.py`` ``q_shift_multihead``), so that every head sees all four neighbours.
Borders and the steps after a reset see zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.layers.context import Context

TOKEN_SHIFTS = ("causal", "bidirectional", "quad", "none")


def require_grid(ctx: Context, tokens: int, what: str) -> tuple[int, int]:
    """The context's grid; raises ValueError if there is none or it does not hold `tokens` tokens."""
    if ctx.grid is None or ctx.grid[0] * ctx.grid[1] != tokens:
        raise ValueError(f"{what} needs ctx.grid = (height, width) with height * width = {tokens}, got {ctx.grid}")
    return ctx.grid


def causal_shift(x: Tensor, previous: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
    """x (B, T, C) one step later; `previous` (B, C) or (C,), zeros if None, comes first; resets see zeros."""
    first = torch.zeros_like(x[:, :1]) if previous is None else previous.to(x.dtype).expand(x.shape[0], -1)[:, None]
    shifted = torch.cat((first, x[:, :-1]), dim=1)
    return shifted if reset is None else shifted.masked_fill(reset[..., None], 0.0)


def bidirectional_shift(x: Tensor, reset: Tensor | None = None) -> Tensor:
    """x (B, T, C): the first half of the channels from the previous token, the second from the next."""
    before, after = x.chunk(2, dim=-1)
    shifted = F.pad(after[:, 1:], (0, 0, 0, 1))
    if reset is not None:
        shifted = shifted.masked_fill(F.pad(reset[:, 1:], (0, 1))[..., None], 0.0)
    return torch.cat((causal_shift(before, reset=reset), shifted), dim=-1)


def quad_shift(x: Tensor, grid: tuple[int, int], heads: int) -> Tensor:
    """x (B, T, C) on a (height, width) grid: each quarter of each head from the left, right, upper, lower token.

    Raises:
        ValueError: the channels per head are no multiple of 4.
    """
    batch, tokens, dim = x.shape
    height, width = grid
    if dim % (4 * heads):
        raise ValueError(f"the quad shift needs channels divisible by 4 x heads = {4 * heads}, got {dim}")
    left, right, up, down = x.view(batch, height, width, heads, 4, dim // heads // 4).unbind(dim=4)
    moved = (
        F.pad(left[:, :, :-1], (0, 0, 0, 0, 1, 0)),
        F.pad(right[:, :, 1:], (0, 0, 0, 0, 0, 1)),
        F.pad(up[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)),
        F.pad(down[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1)),
    )
    return torch.stack(moved, dim=4).reshape(batch, tokens, dim)


def padded_shift(
    x: Tensor, mask: Tensor, previous: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The causal shift where mask (B, T) marks real tokens: a token's predecessor is the last real one before it.

    Returns the shifted (B, T, C) and the row's last real token (B, C), `previous` if a row is all padding.
    """
    before = torch.zeros_like(x[:, :1]) if previous is None else previous.to(x.dtype).expand(x.shape[0], -1)[:, None]
    sequence = torch.cat((before, x), dim=1)
    steps = torch.arange(1, x.shape[1] + 1, device=x.device) * mask
    latest = steps.cummax(dim=1).values  # index into `sequence` of the last real token so far; 0 = previous
    index = F.pad(latest[:, :-1], (1, 0))
    shifted = sequence.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
    if reset is not None:
        segment = reset.cumsum(dim=1)
        shifted = shifted.masked_fill((F.pad(segment, (1, 0)).gather(1, index) != segment)[..., None], 0.0)
    return shifted, sequence.gather(1, latest[:, -1:, None].expand(-1, -1, x.shape[-1])).squeeze(1)


def mix_shift(x: Tensor, shifted: Tensor, mix: Tensor | None) -> Tensor:
    """x moved towards its shifted twin by `mix` per channel (1, 1, C); x itself where a layer has no shift."""
    if mix is None:
        return x
    if x.dtype == shifted.dtype == mix.dtype:
        return torch.lerp(x, shifted, mix)  # one pass over memory instead of three
    return x + (shifted - x) * mix


class TokenShift(nn.Module):
    """The shift of one layer by name: causal (streams), bidirectional, quad (2-D), none.

    Raises:
        ValueError: an unknown kind; at call, a quad shift without a grid that fits.
    """

    def __init__(self, kind: str, heads: int = 1) -> None:
        super().__init__()
        if kind not in TOKEN_SHIFTS:
            raise ValueError(f"unknown token shift {kind!r}: choose one of {', '.join(TOKEN_SHIFTS)}")
        self.kind = kind
        self.heads = heads

    def forward(self, x: Tensor, state: dict[str, Tensor] | None, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, T, C) -> its shifted twin, and {"shift": (B, C)} if the shift is causal."""
        if self.kind == "causal":
            previous = state.get("shift") if state else None
            if ctx.mask is not None:
                shifted, last = padded_shift(x, ctx.mask, previous, ctx.reset)
                return shifted, {"shift": last}
            return causal_shift(x, previous, ctx.reset), {"shift": x[:, -1]}
        if self.kind == "bidirectional":
            return bidirectional_shift(x, ctx.reset), {}
        if self.kind == "quad":
            return quad_shift(x, require_grid(ctx, x.shape[1], "the quad shift"), self.heads), {}
        return x, {}

    def extra_repr(self) -> str:
        return self.kind
