"""Errors of forecasts, from tensors: squared, absolute and scaled errors, weighted quantile loss, coverage.

MASE is Hyndman and Koehler's (2006); the weighted quantile loss, 2 sum(pinball) / sum|y| averaged over the levels, is
GluonTS's ``mean_weighted_sum_quantile_loss`` and what GIFT-Eval calls CRPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

COVERAGES = (80, 95)
"""Per cent of the central intervals whose coverage is measured."""


def pinball(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """The quantile loss of each level: quantiles (..., Q), target (...), levels (Q,) -> (..., Q)."""
    error = target[..., None] - quantiles
    return torch.maximum(levels * error, (levels - 1) * error)


def point_of(quantiles: Tensor, levels: Sequence[float], kind: str = "median") -> Tensor:
    """One number for each step: quantiles (..., Q) -> (...).

    Args:
        quantiles: rising along the last dimension; of a point forecaster (no levels), the point itself.
        levels: Q of them, or none.
        kind: "median", or "mean": of the distribution whose quantile function joins the quantiles by straight lines
            and is level beyond the first and the last.
    """
    if not levels:
        return quantiles[..., 0]
    at = torch.tensor(levels, dtype=quantiles.dtype, device=quantiles.device)
    if kind == "mean":
        edges = torch.cat([at.new_zeros(1), (at[1:] + at[:-1]) / 2, at.new_ones(1)])
        return (quantiles * edges.diff()).sum(-1)
    return quantile_at(quantiles, levels, 0.5)


def quantile_at(quantiles: Tensor, levels: Sequence[float], level: float) -> Tensor:
    """The quantile of any level between the lowest and the highest, by straight lines: (..., Q) -> (...)."""
    above = next((i for i, known in enumerate(levels) if known >= level), len(levels) - 1)
    below = above if levels[above] == level else max(0, above - 1)
    if above == below:
        return quantiles[..., above]
    share = (level - levels[below]) / (levels[above] - levels[below])
    return torch.lerp(quantiles[..., below], quantiles[..., above], share)


class ForecastErrors(Metric):
    """Errors over all forecasts so far, as a dict.

    ``compute()`` gives "mse" and "mae" (mean over steps), "mase" (mean over forecasts of mean absolute error divided by
    its scale; forecasts without a scale do not count), "wql" (a point forecast counts as all of its quantiles) and, if
    there are levels for it, "coverage_80" and "coverage_95", the share of steps inside the central interval.

    Args:
        levels: of the quantiles; () for point forecasts.
        point: what "mse", "mae" and "mase" judge: "median" or "mean".
        options: of torchmetrics' Metric.
    """

    full_state_update = False
    sums: Tensor
    steps: Tensor
    scaled: Tensor
    losses: Tensor
    size: Tensor
    inside: Tensor

    def __init__(self, levels: Sequence[float], point: str = "median", **options: Any) -> None:
        super().__init__(**options)
        self.levels, self.point = tuple(levels), point
        self.intervals = {
            percent: (low, high)
            for percent in COVERAGES
            if self.levels
            and self.levels[0] <= (low := (1 - percent / 100) / 2) + 1e-9
            and (high := 1 - low) - 1e-9 <= self.levels[-1]
        }
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("sums", zero.new_zeros(2), dist_reduce_fx="sum")
        self.add_state("steps", zero.clone(), dist_reduce_fx="sum")
        self.add_state("scaled", zero.new_zeros(2), dist_reduce_fx="sum")
        self.add_state("losses", zero.new_zeros(max(1, len(self.levels))), dist_reduce_fx="sum")
        self.add_state("size", zero.clone(), dist_reduce_fx="sum")
        self.add_state("inside", zero.new_zeros(max(1, len(self.intervals))), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor, observed: Tensor, scale: Tensor) -> None:
        """Add forecasts.

        Nothing is added in place: sums of an evaluation in inference mode go on in training.

        Args:
            forecast: (B, h, Q), Q = 1 for point forecasts.
            target: (B, h).
            observed: (B, h) bool; other steps do not count.
            scale: (B,) of MASE, NaN for none.
        """
        forecast, target = forecast.double(), target.double()
        error = (point_of(forecast, self.levels, self.point) - target).abs()
        weight = observed.double()
        self.sums = self.sums + torch.stack([_sum(error.square(), observed), _sum(error, observed)])
        self.steps = self.steps + weight.sum()
        self._add_scaled(error, observed, scale)
        levels = torch.tensor(self.levels or (0.5,), dtype=torch.float64, device=forecast.device)
        losses = pinball(forecast, target, levels)
        self.losses = self.losses + torch.where(observed[..., None], losses, 0.0).sum((0, 1))
        self.size = self.size + _sum(target.abs(), observed)
        inside = [
            (target >= quantile_at(forecast, self.levels, low))
            & (target <= quantile_at(forecast, self.levels, high))
            & observed
            for low, high in self.intervals.values()
        ]
        if inside:
            self.inside = self.inside + torch.stack([part.sum() for part in inside])

    def _add_scaled(self, error: Tensor, observed: Tensor, scale: Tensor) -> None:
        counts = observed.sum(1)
        mean = torch.where(observed, error, 0.0).sum(1) / counts
        ratio = mean / scale
        valid = (counts > 0) & scale.isfinite()
        self.scaled = self.scaled + torch.stack([_sum(ratio, valid), valid.sum().double()])

    def compute(self) -> dict[str, Tensor]:
        """The errors by name; NaN where nothing counted."""
        found = {
            "mse": self.sums[0] / self.steps,
            "mae": self.sums[1] / self.steps,
            "mase": self.scaled[0] / self.scaled[1],
            "wql": 2 * self.losses.mean() / self.size,
        }
        inside = {f"coverage_{percent}": self.inside[i] / self.steps for i, percent in enumerate(self.intervals)}
        return {name: value.float() for name, value in (found | inside).items()}


def _sum(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0.0).sum()
