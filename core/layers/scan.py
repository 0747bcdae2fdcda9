"""Scan orders: in which order, and in how many, a causal operator walks over tokens.

RWKV-7's delta rule has no two-sided closed form, so every direction is a scan of its own. A scan names its
orders and whether the heads are divided among them (`split`, no extra cost) or every head takes all of them and
their outputs are averaged (the current token then counts once, as in a single scan). It is one operator call whatever
the scan, made after projection, so that all that is per token (value residual, bonus, gate) stays in raster order.

Sources: VMamba (arXiv 2401.10166) cross scan; Vision-RWKV (arXiv 2403.02308); AudioRWKV (arXiv 2509.02167).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from core.layers.context import Context
from core.layers.token_shift import require_grid
from core.wkv import wkv7
from core.wkv.walk import FORWARD, Walk


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
    walk = FORWARD
    if scan.orders != FORWARD.orders:
        columns = [order for order in scan.orders if order in ("down", "up")]
        grid = require_grid(ctx, inputs.r.shape[1], f"the scan order {columns[0]!r}") if columns else None
        walk = Walk(scan.orders, scan.split, grid)
    return wkv7(*inputs, state, reset=ctx.reset, walk=walk, return_state=ctx.keep_state)
