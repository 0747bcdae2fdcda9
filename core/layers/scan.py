"""Scan orders: in which order, and in how many, a causal operator walks over tokens.

RWKV-7's delta rule has no two-sided closed form, so every direction is a scan of its own. A scan names its
orders and whether the heads are divided among them (`split`, no extra cost) or every head takes all of them and
their outputs are averaged (the current token then counts once, as in a single scan). The orders ride in the
batch: one operator call whatever the scan. Permutations are flips and grid transposes, made after projection,
so that all that is per token (value residual, bonus, gate) stays in raster order.

Sources: VMamba (arXiv 2401.10166) cross scan; Vision-RWKV (arXiv 2403.02308); AudioRWKV (arXiv 2509.02167).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.layers.context import Context
from core.layers.token_shift import require_grid
from core.wkv import wkv7


class WKVInputs(NamedTuple):
    """The operator's inputs in raster order: r, log_w, k, a, b (B, T, H, K), v (B, T, H, V)."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor

    def masked(self, mask: Tensor) -> WKVInputs:
        """Steps where mask (B, T) is False made neutral: they read something, but change no state."""
        keep = mask[..., None, None]
        quiet = [x.masked_fill(~keep, 0.0) for x in self[1:]]
        return WKVInputs(self.r, *quiet)


class Scan(NamedTuple):
    """The orders one layer walks in, and whether they share out the heads."""

    orders: tuple[str, ...]
    split: bool = False


_BOTH = ("forward", "backward")
_FOUR = ("forward", "backward", "down", "up")  # rows there and back, columns there and back
_PATTERNS: dict[str, tuple[Scan, ...]] = {
    "forward": (Scan(("forward",)),),
    "backward": (Scan(("backward",)),),
    "alternate": tuple(Scan((order,)) for order in _BOTH),
    "alternate4": tuple(Scan((order,)) for order in _FOUR),
    "bidirectional": (Scan(_BOTH),),
    "cross4": (Scan(_FOUR),),
    "split2": (Scan(_BOTH, split=True),),
    "split4": (Scan(_FOUR, split=True),),
}
SCANS = tuple(_PATTERNS)


def resolve_scan(name: str, layer_id: int, heads: int) -> Scan:
    """The scan of one layer: alternating names turn with the layer.

    Raises:
        ValueError: an unknown name, or heads that do not divide among a split scan's orders.
    """
    if name not in _PATTERNS:
        raise ValueError(f"unknown scan {name!r}: choose one of {', '.join(SCANS)}")
    pattern = _PATTERNS[name]
    scan = pattern[layer_id % len(pattern)]
    if scan.split and heads % len(scan.orders):
        raise ValueError(
            f"scan {name!r} divides the heads among {len(scan.orders)} orders, got {heads} heads: "
            f"choose a head_dim that gives a multiple of {len(scan.orders)}"
        )
    return scan


def permute(x: Tensor, order: str, ctx: Context, *, inverse: bool = False) -> Tensor:
    """x (B, T, ...) from raster order into `order`, or back with inverse=True."""
    if order == "forward":
        return x
    if order == "backward":
        return x.flip(1)
    height, width = require_grid(ctx, x.shape[1], f"the scan order {order!r}")
    if inverse:
        x = x.flip(1) if order == "up" else x
        return x.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
    x = x.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)
    return x.flip(1) if order == "up" else x


def _reset_in(order: str, reset: Tensor) -> Tensor:
    """Where sequences begin when walked in `order`: backwards, a sequence begins at its last token."""
    if order == "forward":
        return reset
    if order == "backward":
        return F.pad(reset[:, 1:], (0, 1), value=True).flip(1)
    raise ValueError(f"the scan order {order!r} walks over columns, which ctx.reset (sequences in rows) cuts through")


def scan_wkv7(inputs: WKVInputs, scan: Scan, state: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """The operator over every order of `scan`.

    Args:
        inputs: in raster order, see :class:`WKVInputs`.
        scan: from :func:`resolve_scan`.
        state: (B, S, V, K) or (S, V, K) initial states, S = H for one order or split heads, else
            len(orders) * H, the orders one after another; None for zeros.
        ctx: for `reset`, `grid` and `keep_state`.

    Returns:
        y (B, T, H, V) in raster order; final states (B, S, V, K), or None if not ``ctx.keep_state``.
    """
    orders, batch = scan.orders, inputs.r.shape[0]
    if len(orders) == 1:
        order = orders[0]
        reset = None if ctx.reset is None else _reset_in(order, ctx.reset)
        walked = WKVInputs(*(permute(x, order, ctx) for x in inputs))
        y, final = wkv7(*walked, state, reset=reset, return_state=ctx.keep_state)
        return permute(y, order, ctx, inverse=True), final

    count = len(orders)
    shares = [x.chunk(count, dim=2) if scan.split else (x,) * count for x in inputs]
    walked = WKVInputs(
        *(torch.cat([permute(part, order, ctx) for part, order in zip(parts, orders, strict=True)]) for parts in shares)
    )
    reset = None if ctx.reset is None else torch.cat([_reset_in(order, ctx.reset) for order in orders])
    if state is not None:
        state = torch.cat(state.expand(batch, *state.shape[-3:]).chunk(count, dim=1))
    y, final = wkv7(*walked, state, reset=reset, return_state=ctx.keep_state)
    outputs = [permute(part, order, ctx, inverse=True) for part, order in zip(y.chunk(count), orders, strict=True)]
    y = torch.cat(outputs, dim=2) if scan.split else torch.stack(outputs).mean(0)
    return y, None if final is None else torch.cat(final.chunk(count), dim=1)
