"""TimeMix: RWKV-7's token mixer ("x070"), exactly BlinkDL's by default, with the hooks other systems need.

Source: BlinkDL/RWKV-LM ``RWKV-v7/train_temp/src/model.py`` (RWKV_Tmix_x070); RWKV-7 paper (arXiv 2503.14456).
Parameter names are the checkpoints': x_* token-shift mixes, w0-w2 decay, a0-a2 in-context learning rate (iclr),
v0-v2 value residual, g1-g2 gate, k_k removal-key scale, k_a replacement strength, r_k bonus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import init
from core.layers.context import Context
from core.layers.registry import token_mixers
from core.layers.rope import rotate
from core.layers.scan import Scan, WKVInputs, resolve_scan, scan_wkv7
from core.layers.token_shift import TokenShift, mix_shift
from core.wkv.reference import without_autocast

LOG_DECAY_FLOOR = -math.exp(-0.5)
"""log of the smallest decay, exp(-exp(-0.5)) = 0.545."""

Edit = Callable[[WKVInputs, Context], WKVInputs]
Readout = Callable[["StateReader", Tensor, WKVInputs, Context], Tensor]


class StateReader:
    """What a ``readout`` hook asks the same recurrence: other queries, or the states themselves."""

    def __init__(self, inputs: WKVInputs, scan: Scan, state: Tensor | None, ctx: Context) -> None:
        self._inputs, self._scan, self._state = inputs, scan, state
        self._ctx = ctx._replace(keep_state=False)

    def query(self, q: Tensor) -> Tensor:
        """q (B, T, H, K) -> S_t q_t for every step, (B, T, H, V): what receptance q would have read."""
        return scan_wkv7(self._inputs._replace(r=q), self._scan, self._state, self._ctx)[0]

    def states(self, every: int) -> Tensor:
        """The states after steps `every`, 2 `every`, ... and after the last: (B, ceil(T / every), S, V, K)."""
        if self._scan.orders != ("forward",):
            raise ValueError(f"states at chunk ends exist for the forward scan alone, this one is {self._scan.orders}")
        states, state = [], self._state
        for start in range(0, self._inputs.r.shape[1], every):
            piece = WKVInputs(*(x[:, start : start + every] for x in self._inputs))
            reset = None if self._ctx.reset is None else self._ctx.reset[:, start : start + every]
            _, state = scan_wkv7(piece, self._scan, state, self._ctx._replace(reset=reset, keep_state=True))
            assert state is not None
            states.append(state)
        return torch.stack(states, dim=1)


@token_mixers.register("rwkv7")
class TimeMix(nn.Module):
    """RWKV-7 time mixing.

    Args:
        dim: width C.
        layer_id, num_layers: place in the stack, for the initialisation.
        head_dim: key size N of a head; H = dim / N.
        value_head_dim: value size of a head, N if None.
        kv_heads: heads of key and value before repetition (grouped heads of converted transformers), H if None.
        token_shift: a name of :data:`core.layers.token_shift.TOKEN_SHIFTS`.
        scan: a name of :data:`core.layers.scan.SCANS`.
        lora_ranks: (w, a, v, g), :meth:`core.init.LoRARanks.of` the width if None.
        value_residual: mix in the first RWKV-7 layer's value; ``layer_id > 0`` if None.
        gate, bonus, group_norm: RWKV-7's output gate, current-token bonus and per-head norm.
        gn_eps: 64e-5 at BlinkDL whatever the head size.
        iclr_scale: factor of the in-context learning rate in the removal; 2 admits eigenvalues down to -1.
        bias: biases on receptance, key and value; output_bias: on output.
        rope_theta: base of a rotary embedding on r and k, none if None.
        wkv_edit: ``(WKVInputs, ctx) -> WKVInputs`` just before the operator.
        readout: ``(StateReader, y, WKVInputs, ctx) -> y`` (B, T, H, V) just after it.

    State: {"shift": (B, C), "wkv": (B, S, V, K) float32, with rope "position": (B,)}; see
    :func:`core.layers.scan.scan_wkv7` for S.

    Raises:
        ValueError: widths, heads, scan or shift that do not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        layer_id: int = 0,
        num_layers: int = 1,
        head_dim: int = 64,
        value_head_dim: int | None = None,
        kv_heads: int | None = None,
        token_shift: str = "causal",
        scan: str = "forward",
        lora_ranks: Sequence[int] | None = None,
        value_residual: bool | None = None,
        gate: bool = True,
        bonus: bool = True,
        group_norm: bool = True,
        gn_eps: float = 64e-5,
        iclr_scale: float = 1.0,
        bias: bool = False,
        output_bias: bool = False,
        rope_theta: float | None = None,
        wkv_edit: Edit | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"dim must be a multiple of head_dim, got dim {dim} and head_dim {head_dim}")
        heads = dim // head_dim
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide the {heads} heads, got {kv_heads}")
        value_dim = heads * (value_head_dim or head_dim)
        self.heads, self.head_dim, self.repeats = heads, head_dim, heads // kv_heads
        self.depth = init.Depth(layer_id, num_layers)
        self.scan = resolve_scan(scan, layer_id, heads)
        self.token_shift = TokenShift(token_shift, heads)
        self.value_residual = layer_id > 0 if value_residual is None else value_residual
        self.gate, self.bonus, self.gn_eps, self.iclr_scale = gate, bonus, gn_eps, iclr_scale
        self.rope_theta, self.wkv_edit, self.readout = rope_theta, wkv_edit, readout
        ranks = init.LoRARanks(*lora_ranks) if lora_ranks else init.LoRARanks.of(dim)

        def vector(size: int = dim) -> nn.Parameter:
            return nn.Parameter(torch.empty(1, 1, size))

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, columns))

        shifts = token_shift != "none"  # without a shift there is nothing to mix in
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a = (vector() if shifts else None for _ in range(5))
        self.w0, self.w1, self.w2 = vector(), matrix(dim, ranks.w), matrix(ranks.w, dim)
        self.a0, self.a1, self.a2 = vector(), matrix(dim, ranks.a), matrix(ranks.a, dim)
        if self.value_residual:  # the first layer has none: parameters without gradient would break DDP
            self.v0, self.v1, self.v2 = vector(value_dim), matrix(dim, ranks.v), matrix(ranks.v, value_dim)
        if gate:
            self.x_g = vector() if shifts else None
            self.g1, self.g2 = matrix(dim, ranks.g), matrix(ranks.g, value_dim)
        self.k_k, self.k_a = vector(), vector()
        if bonus:
            self.r_k = matrix(heads, head_dim)
        self.receptance = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(dim, value_dim // self.repeats, bias=bias)
        self.output = nn.Linear(value_dim, dim, bias=output_bias)
        self.ln_x = nn.GroupNorm(heads, value_dim, eps=gn_eps) if group_norm else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """RWKV-7's starting values, see :mod:`core.init`; the output starts at zero."""
        dim, value_dim = self.heads * self.head_dim, self.output.in_features
        vectors = init.time_mix_vectors(dim, value_dim, self.head_dim, self.depth)
        for name, parameter in self.named_parameters(recurse=False):
            if name in vectors:
                parameter.copy_(vectors[name].view_as(parameter))
            elif name.endswith("1"):
                parameter.zero_()
            else:
                init.lora_up_(parameter)
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, gain=0.1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)
        for linear in (self.receptance, self.key, self.value, self.output):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.ln_x is not None:
            self.ln_x.weight.copy_(vectors["ln_x"])
            nn.init.zeros_(self.ln_x.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _repeat(self, x: Tensor) -> Tensor:
        """Grouped key or value heads (B, T, kv_heads * N) repeated to every head."""
        if self.repeats == 1:
            return x
        return x.unflatten(-1, (self.heads // self.repeats, -1)).repeat_interleave(self.repeats, dim=-2).flatten(-2)

    def project(self, x: Tensor, shifted: Tensor, ctx: Context) -> tuple[WKVInputs, Context]:
        """x and its shifted twin (B, T, C) -> the operator's inputs, and a context that has v_first."""
        xr, xw, xk, xv, xa = (mix_shift(x, shifted, mix) for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a))
        r = self.receptance(xr)
        k = self._repeat(self.key(xk))
        v = self._heads(self._repeat(self.value(xv)))
        if self.value_residual:
            if ctx.v_first is None:
                raise ValueError(
                    "this TimeMix mixes in the first layer's value, but ctx.v_first is None: run it after a first "
                    "layer, or build it with value_residual=False"
                )
            v = mix_shift(v, ctx.v_first, self._heads(torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)))
        elif ctx.v_first is None:
            ctx = ctx._replace(v_first=v)

        dtype = r.dtype
        precise = torch.promote_types(dtype, torch.float32)
        with without_autocast(x.device):  # decay and key norm: float32 whatever the autocast
            decay = self._low_rank(torch.tanh, xw, self.w1, self.w2)
            log_w = LOG_DECAY_FLOOR * torch.sigmoid((self.w0 + decay).to(precise))
            iclr = torch.sigmoid((self.a0 + self._low_rank(None, xa, self.a1, self.a2)).to(precise))
            kk = F.normalize(self._heads((k * self.k_k).to(precise)), dim=-1, eps=1e-12)
            k = k * mix_shift(torch.ones_like(iclr[..., :1]), iclr, self.k_a)  # 1 + (iclr - 1) k_a
        b = kk * self._heads(iclr if self.iclr_scale == 1.0 else iclr * self.iclr_scale)
        r, k = self._heads(r), self._heads(k.to(dtype))
        return WKVInputs(r, self._heads(log_w), k, v.to(dtype), -kk.to(dtype), b.to(dtype)), ctx

    @staticmethod
    def _low_rank(activation: Callable[[Tensor], Tensor] | None, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        hidden = x.to(down.dtype) @ down
        return (activation(hidden) if activation else hidden) @ up

    def _rotate(self, inputs: WKVInputs, state: dict[str, Tensor]) -> tuple[WKVInputs, Tensor]:
        """Rotary positions on r and k, counted on from the state's; returns the new count (B,)."""
        assert self.rope_theta is not None
        batch, steps = inputs.r.shape[:2]
        start = state.get("position", torch.zeros(batch, dtype=torch.long, device=inputs.r.device))
        positions = start[:, None] + torch.arange(steps, device=inputs.r.device)
        r, k = (rotate(x, positions, self.rope_theta) for x in (inputs.r, inputs.k))
        return inputs._replace(r=r, k=k), start + steps

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), the state after it, and the context with v_first.

        Raises:
            ValueError: a context that lacks the grid or v_first this layer needs, a state of the wrong shape.
        """
        ctx = ctx or Context()
        state = state or {}
        shifted, new_state = self.token_shift(x, state, ctx)
        inputs, ctx = self.project(x, shifted, ctx)
        if self.rope_theta is not None:
            inputs, new_state["position"] = self._rotate(inputs, state)
        if self.wkv_edit is not None:
            inputs = self.wkv_edit(inputs, ctx)
        if ctx.mask is not None:
            inputs = inputs.masked(ctx.mask)
        y, wkv = scan_wkv7(inputs, self.scan, state.get("wkv"), ctx)
        if self.readout is not None:
            y = self.readout(StateReader(inputs, self.scan, state.get("wkv"), ctx), y, inputs, ctx)
        y = self._read(x, shifted, y, inputs)
        if wkv is None:
            return y, {}, ctx
        return y, {**new_state, "wkv": wkv}, ctx

    def _read(self, x: Tensor, shifted: Tensor, y: Tensor, inputs: WKVInputs) -> Tensor:
        """Per-head norm, bonus, gate and output projection."""
        if self.ln_x is not None:
            y = self.ln_x(y.flatten(0, 1).flatten(1)).view_as(y)
        if self.bonus:
            y = torch.addcmul(y, (inputs.r * inputs.k * self.r_k).sum(-1, keepdim=True), inputs.v)
        y = y.flatten(2)
        if self.gate:
            y = y * self._low_rank(torch.sigmoid, mix_shift(x, shifted, self.x_g), self.g1, self.g2)
        return self.output(y)
