"""Naive forecasts as features: the last value and the last seasons, continued over every slot a token predicts.

A forecaster that starts from these has only to learn when each of them holds, and what they miss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LAGS = 2  # seasons back


class History(NamedTuple):
    """What paths read: values without gaps (the last one observed carried on), and where they lie in their stream."""

    filled: Tensor
    """(B, H) float64."""
    offset: Tensor
    """(B,) int64, the stream's step at which `filled` begins; may be negative: nothing was before step 0."""
    low: Tensor
    """(B, T) int64, the earliest step that a token's paths may rest on: observed, and not too long ago."""


class Paths(NamedTuple):
    """Continuations of a series, (B, T, slots, K) float64 in the data's units, and which exist, (B, T, K) bool."""

    values: Tensor
    available: Tensor


def count(num_periods: int) -> int:
    """K: the last value, and for each period its last seasons."""
    return 1 + LAGS * num_periods


def fill_forward(values: Tensor, observed: Tensor, before: Tensor) -> Tensor:
    """values (B, N) with each gap filled by the last value observed before it, `before` (B,) at the beginning."""
    steps = torch.arange(values.shape[1], device=values.device)
    latest = torch.where(observed, steps, -1).cummax(1).values
    return torch.where(latest < 0, before[:, None], values.gather(1, latest.clamp(min=0)))


def naive_paths(history: History, end: Tensor, base: Tensor, slots: int, periods: Tensor) -> Paths:
    """The last value, and the seasonal naive forecasts of every period, one and two seasons back.

    Args:
        history: what has been seen.
        end: (B, T) int64, the step after the last one observed, as each token knows it.
        base: (B, T) int64, the step of each token's slot 0.
        slots: predicted by each token.
        periods: (B, S) int64, 0 for none.

    Returns:
        A slot before `end` gets the value itself; one after it that of the same phase in the last complete season.
        Where a path does not exist (no period, less than a season seen) it repeats the last value.
    """
    step = base[..., None] + torch.arange(slots, device=base.device)
    last = value_at(history, (end - 1)[..., None]).expand(step.shape)
    values, available = [last], [end > history.low]
    for period in periods.unbind(1):
        length = period.clamp(min=1)[:, None, None]
        ahead = (step - end[..., None] + 1).clamp(min=0)
        back = (ahead + length - 1) // length * length
        for lag in range(LAGS):
            there = (period[:, None] > 0) & (end - (lag + 1) * period[:, None] >= history.low)
            values.append(torch.where(there[..., None], value_at(history, step - back - lag * length), last))
            available.append(there)
    return Paths(torch.stack(values, dim=-1), torch.stack(available, dim=-1))


def value_at(history: History, step: Tensor) -> Tensor:
    """The value at each step (B, T, slots), at the history's edge where it does not reach."""
    index = (step - history.offset[:, None, None]).clamp(0, history.filled.shape[1] - 1)
    return history.filled.gather(1, index.flatten(1)).view(step.shape)
