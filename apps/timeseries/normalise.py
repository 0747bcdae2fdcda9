"""Location and scale of a series: of all it has shown so far, or of the whole window.

Causal statistics never look ahead and are a constant-size part of a stream's state, so that a stream that goes on
and one that is read again from its start give the same forecast. Statistics of the window (RevIN, Kim et al., ICLR
2022, without its affine part) change with every new point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NORMS = ("causal", "window", "none")
_RELATIVE_FLOOR, _ABSOLUTE_FLOOR = 1e-6, 1e-12  # a constant series: forecasts stay within a millionth of its level


class Running(NamedTuple):
    """Weighted sums over what a stream has shown, around its first value, which keeps them small. (B,) float64."""

    weight: Tensor
    shift: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def start(cls, batch: int, device: torch.device | str = "cpu") -> Running:
        """Nothing seen yet."""
        zeros = torch.zeros(batch, dtype=torch.float64, device=device)
        return cls(zeros, zeros, zeros, zeros)

    def loc_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, guarded: 0 and 1 before the first value, a tiny scale for a constant."""
        seen = self.weight > 0
        weight = self.weight.where(seen, 1.0)
        mean = self.total / weight
        deviation = (self.squares / weight - mean * mean).clamp(min=0.0).sqrt()
        loc = (self.shift + mean).where(seen, 0.0)
        scale = torch.maximum(deviation, loc.abs() * _RELATIVE_FLOOR).clamp(min=_ABSOLUTE_FLOOR)
        return loc, scale.where(seen, 1.0)


def running(patches: Tensor, visible: Tensor, past: Running, halflife: float | None = None) -> Running:
    """The statistics after every patch, that patch included.

    Args:
        patches, visible: (B, T, P) float64 and bool.
        past: of the steps before these, (B,).
        halflife: steps after which a value counts half; None: all count the same.

    Returns:
        Running of (B, T).
    """
    flat, shown = patches.flatten(1), visible.flatten(1)
    first = flat.gather(1, shown.long().argmax(1, keepdim=True)).squeeze(1)
    shift = torch.where((past.weight == 0) & shown.any(1), first, past.shift)
    weight = visible.double()
    keep = None if halflife is None else 0.5 ** (1.0 / halflife)
    if keep is not None:
        ages = torch.arange(patches.shape[2] - 1, -1, -1, dtype=torch.float64, device=patches.device)
        weight = weight * keep**ages
    away = (patches - shift[:, None, None]).masked_fill(~visible, 0.0)
    sums = torch.stack((weight.sum(-1), (weight * away).sum(-1), (weight * away * away).sum(-1)), dim=-1)
    before = torch.stack((past.weight, past.total, past.squares), dim=-1)[:, None]
    if keep is None:
        sums = before + sums.cumsum(1)
    else:
        sums = _decayed_sums(torch.cat((before, sums), dim=1), keep ** patches.shape[2])[:, 1:]
    all_weight, total, squares = sums.unbind(-1)
    return Running(all_weight, shift[:, None].expand_as(all_weight), total, squares)


def _decayed_sums(x: Tensor, keep: float) -> Tensor:
    """y_i = x_i + keep y_{i-1} along dim 1, in log2(T) steps."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat((x[:, :step], x[:, step:] + keep**step * x[:, :-step]), dim=1)
        step *= 2
    return x


def window_statistics(patches: Tensor, visible: Tensor) -> Running:
    """The same statistics for every patch (B, T, P): those of the whole window. Running of (B, T)."""
    batch, tokens = patches.shape[:2]
    whole = running(patches.flatten(1)[:, None], visible.flatten(1)[:, None], Running.start(batch, patches.device))
    return Running(*(part.expand(-1, tokens) for part in whole))
