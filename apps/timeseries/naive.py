"""The seasonal naive forecast: the last season again. Without a season, the last value."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.timeseries.one_window import OneWindowForecaster


class SeasonalNaive(OneWindowForecaster):
    """Repeats the last season of each window; nothing is trained.

    Args:
        input_len, output_len: L and O.
        season: which of a series' seasons, 0 being the most important.

    Raises:
        ValueError: a negative season.
    """

    def __init__(self, input_len: int = 512, output_len: int = 96, season: int = 0) -> None:
        super().__init__(input_len, output_len)
        if season < 0:
            raise ValueError(f"season must be 0 (the most important) or above, got {season}")
        self.season = season

    def ahead(self, windows: Tensor, periods: Tensor) -> Tensor:
        """Windows (B, L) and season lengths (B, S) -> (B, O); seasons that are unknown or longer than L count as 1."""
        if self.season < periods.shape[1]:
            period = periods[:, self.season]
        else:
            period = torch.ones(len(windows), dtype=torch.int64, device=windows.device)
        length = windows.shape[1]
        period = torch.where((period > 0) & (period <= length), period, 1)[:, None]
        step = torch.arange(self.output_len, device=windows.device)
        return windows.gather(1, length - period + step % period)
