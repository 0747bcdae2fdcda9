"""Forecasters that see the last input_len steps as one patch and say the next output_len: the twins of the studies."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.timeseries.forecaster import Output
from apps.timeseries.normalise import window_statistics
from apps.timeseries.paths import fill_forward
from apps.timeseries.series import Series
from apps.timeseries.window import WindowForecaster


class OneWindowForecaster(WindowForecaster):
    """What these share: gaps filled by the value before them, each window normalised by itself, one point a step.

    A subclass overrides :meth:`ahead`. A series of several windows is so many windows side by side.

    Args:
        input_len, output_len: L and O.
        window_norm: hand over (window - mean) / standard deviation and undo it in the forecast; False: values as they
            are, for sets that are scaled as a whole.

    Raises:
        ValueError: lengths below 1.
    """

    def __init__(self, input_len: int, output_len: int, window_norm: bool = True) -> None:
        super().__init__()
        if input_len < 1 or output_len < 1:
            raise ValueError(f"input_len and output_len must be at least 1, got {input_len} and {output_len}")
        self.patch_len = self.input_len = input_len
        self.output_len, self.window_norm = output_len, window_norm

    def ahead(self, windows: Tensor, periods: Tensor) -> Tensor:
        """Windows (B, L) float32 and season lengths (B, S) -> the next steps, (B, O)."""
        raise NotImplementedError

    def forward(self, series: Series) -> Output:
        """Series of N steps, N a multiple of L -> each window's forecast.

        Raises:
            ValueError: N is no multiple of L.
        """
        batch, steps = series.values.shape
        if steps % self.patch_len or not steps:
            raise ValueError(f"the series have {steps} steps; a multiple of input_len {self.patch_len} was expected")
        count = steps // self.patch_len
        values, observed = (x.unflatten(1, (count, -1)).flatten(0, 1) for x in (series.values, series.observed))
        first = values.gather(1, observed.long().argmax(1, keepdim=True)).squeeze(1)
        filled = fill_forward(values, observed, first)
        loc, scale = (part for part in window_statistics(values[:, None], observed[:, None]).loc_scale())
        if not self.window_norm:
            loc, scale = torch.zeros_like(loc), torch.ones_like(scale)
        z = self.normalise(filled, loc, scale)
        periods = series.periods.repeat_interleave(count, 0)
        found = self.ahead(z, periods).to(z).view(batch, count, -1, 1)
        loc, scale = (part.view(batch, count, 1) for part in (loc, scale))
        base = self.patch_len * torch.arange(1, count + 1, device=z.device)
        return Output(found, loc, scale, base.expand(batch, -1))
