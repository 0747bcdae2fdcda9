"""What naive forecasts would have missed lately, and where the drift leads: both from the values a stream keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from apps.timeseries.paths import History, Paths, value_at

RECENT = 48  # steps that changes are averaged over
_SMALLEST = 1e-4  # change that still counts, in scales


class Changes(NamedTuple):
    """Mean changes of the last steps over one step and over each season, (B, T, 1 + S) float32 as the network sees
    values; and whether there were any, (B, T, 1 + S) bool."""

    size: Tensor
    known: Tensor

    @property
    def features(self) -> Tensor:
        """(B, T, 2 (1 + S)): logarithms, 0 where not known, and what is known."""
        logs = (self.size + _SMALLEST).log().masked_fill(~self.known, 0.0)
        return torch.cat((logs, self.known.to(logs)), dim=-1)

    @property
    def unit(self) -> Tensor:
        """(B, T), what residuals are counted in: the root of the smallest change, at most 1; 1 where none is known.

        The root, because errors some steps ahead lie between a series' changes and its spread.
        """
        smallest = self.size.masked_fill(~self.known, 1.0).amin(-1)
        return smallest.clamp(_SMALLEST, 1.0).sqrt()


def recent_changes(history: History, end: Tensor, periods: Tensor, normalise: Callable[[Tensor], Tensor]) -> Changes:
    """Mean |z_t - z_{t - lag}| over the last steps, for the lag 1 and each period.

    Args:
        history: what has been seen.
        end: (B, T) int64, the step after the last one observed.
        periods: (B, S) int64, 0 for none.
        normalise: values (B, T, n) -> what the network sees of them.
    """
    step = (end - 1)[..., None] - torch.arange(RECENT, device=end.device)
    now = normalise(value_at(history, step))
    size, known = [], []
    for lag in (torch.ones_like(periods[:, 0]), *periods.unbind(1)):
        before = step - lag[:, None, None]
        there = (before >= history.low[..., None]) & (lag > 0)[:, None, None]
        change = (now - normalise(value_at(history, before))).abs().where(there, 0.0)
        count = there.sum(-1)
        size.append(change.sum(-1) / count.clamp_min(1))
        known.append(count > 0)
    return Changes(torch.stack(size, dim=-1), torch.stack(known, dim=-1))


def drift_path(history: History, end: Tensor, base: Tensor, slots: int) -> Paths:
    """The straight line from the first value through the last one, continued: (B, T, slots, 1); the random walk with
    drift's forecast. Slots before `end` lie on it too."""
    last = value_at(history, (end - 1)[..., None])
    length = end - 1 - history.low
    slope = (last - value_at(history, history.low[..., None])) / length.clamp_min(1)[..., None]
    ahead = base[..., None] + torch.arange(slots, device=base.device) - (end - 1)[..., None]
    there = length > 0
    return Paths((last + ahead * slope.where(there[..., None], 0.0))[..., None], there[..., None])
