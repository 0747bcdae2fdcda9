"""Forecasts beside the truth and beside the seasonal naive ones: errors by step and by series, coverage by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from apps.timeseries.metrics import ForecastErrors, pinball, point_of
from apps.timeseries.paths import fill_forward
from apps.timeseries.windows import Case


def seasonal_naive(case: Case) -> Tensor:
    """The last of each series' most important seasons repeated, (B, horizon) float64; of one without, the last value.

    So where less than a season is known. Gaps of the history are filled by the value before them.
    """
    history = case.history
    if history.periods.shape[1]:
        period = history.periods[:, :1].clamp_min(1)
    else:
        period = torch.ones_like(case.length)[:, None]
    horizon = case.target.shape[1]
    first = history.values.gather(1, history.observed.long().argmax(1, keepdim=True)).squeeze(1)
    filled = fill_forward(history.values, history.observed, first)
    step = torch.arange(horizon, device=filled.device)
    back = period * (step.div(period, rounding_mode="floor") + 1)
    at = case.length[:, None] + step - back
    last = case.length[:, None] - 1
    return filled.gather(1, torch.where(at >= 0, at, last).clamp_min(0))


@dataclass
class Breakdown:
    """Sums over forecasts: by horizon step, by series, by quantile level; of the model and of the seasonal naive.

    Args:
        levels: of the model's quantiles; () for a point forecaster.
        point: "median" or "mean".
    """

    levels: tuple[float, ...]
    point: str = "median"
    steps: dict[str, Tensor] = field(default_factory=dict)
    series: dict[int, Tensor] = field(default_factory=dict)
    below: Tensor | None = None
    total: float = 0.0

    def __post_init__(self) -> None:
        # Of one process: others may not be there to add theirs.
        self.model = ForecastErrors(self.levels, self.point, sync_on_compute=False)
        self.naive = ForecastErrors((), sync_on_compute=False)

    def update(self, case: Case, forecast: Tensor, observed: Tensor) -> None:
        """Add a batch: forecast (B, h, Q), observed (B, h)."""
        case = Case(case.history.to("cpu"), *(part.cpu() for part in case[1:]))
        forecast, observed = forecast.double().cpu(), observed.cpu()
        naive = seasonal_naive(case)
        self.model.update(forecast, case.target, observed, case.scale)
        self.naive.update(naive[..., None], case.target, observed, case.scale)
        error = (point_of(forecast, self.levels, self.point) - case.target).abs()
        levels = torch.tensor(self.levels or (0.5,), dtype=torch.float64)
        loss = 2 * pinball(forecast, case.target, levels).mean(-1)
        parts = {"count": torch.ones_like(error), "absolute": error, "squared": error.square(), "quantile": loss}
        parts["naive absolute"] = (naive - case.target).abs()
        parts["naive squared"] = parts["naive absolute"].square()
        for name, values in parts.items():
            found = values.where(observed, 0.0).sum(0)
            self.steps[name] = self.steps.get(name, torch.zeros_like(found)) + found
        self._add_series(case, error, parts["naive absolute"], observed)
        if self.levels:
            covered = (case.target[..., None] <= forecast) & observed[..., None]
            found = covered.sum((0, 1)).double()
            self.below = found if self.below is None else self.below + found
        self.total += float(observed.sum())

    def _add_series(self, case: Case, error: Tensor, naive: Tensor, observed: Tensor) -> None:
        """Per series: steps, absolute error of the model and of the naive forecast, the naive forecast's scale."""
        sums = torch.stack([part.where(observed, 0.0).sum(1) for part in (torch.ones_like(error), error, naive)], 1)
        for number, row in zip(case.place[:, 0].tolist(), sums, strict=True):
            self.series[number] = self.series[number] + row if number in self.series else row

    def by_step(self) -> dict[str, list[float]]:
        """Mean errors of each step ahead: "mae", "mse", "quantile_loss", "naive_mae", "naive_mse"."""
        count = self.steps["count"].clamp_min(1)
        names = {
            "mae": "absolute",
            "mse": "squared",
            "quantile_loss": "quantile",
            "naive_mae": "naive absolute",
            "naive_mse": "naive squared",
        }
        return {name: (self.steps[part] / count).tolist() for name, part in names.items()}

    def by_series(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Steps, mean absolute error and that of the naive forecast, by the series' names."""
        found = {}
        for number, (count, absolute, naive) in sorted(self.series.items()):
            name = names[number] if number < len(names) else str(number)
            many = max(float(count), 1.0)
            found[name] = {"steps": int(count), "mae": float(absolute) / many, "naive_mae": float(naive) / many}
        return found

    def by_level(self) -> dict[str, float]:
        """The share of truths at or below each quantile, by its level: equal to it for a calibrated forecaster."""
        if self.below is None:
            return {}
        return {f"{level:g}": float(n) / max(self.total, 1.0) for level, n in zip(self.levels, self.below, strict=True)}

    def summary(self) -> dict[str, dict[str, float]]:
        """The errors by name, of the model and of the seasonal naive forecast."""
        parts = {"model": self.model, "seasonal_naive": self.naive}
        return {name: {key: float(value) for key, value in part.compute().items()} for name, part in parts.items()}


def show(console: Console, split: str, found: dict[str, Any], rows: int = 6) -> None:
    """Print what ``ForecastTask.study`` found for one split: the model beside the naive, steps ahead, worst series."""
    console.print(f"\n[bold]{split}[/], {found['forecasts']:,} forecasts of {found['horizon']} steps", highlight=False)
    table = _table("", "model", "seasonal naive")
    errors = found["errors"]
    for name, value in errors["model"].items():
        naive = errors["seasonal_naive"].get(name)
        table.add_row(name.replace("_", " "), f"{value:.4f}", "" if naive is None else f"{naive:.4f}")
    console.print(table)
    steps = found["by_step"]
    horizon = len(steps["mae"])
    table = _table("step ahead", "mae", "mae of seasonal naive")
    for step in sorted({round(1 + i * (horizon - 1) / max(1, rows - 1)) for i in range(rows)}):
        table.add_row(str(step), f"{steps['mae'][step - 1]:.4f}", f"{steps['naive_mae'][step - 1]:.4f}")
    console.print(table)
    if len(found["by_series"]) > 1:
        table = _table("hardest series", "mae", "mae of seasonal naive")
        hardest = sorted(found["by_series"].items(), key=lambda item: -item[1]["mae"] / (item[1]["naive_mae"] or 1e-12))
        for name, entry in hardest[:rows]:
            table.add_row(name, f"{entry['mae']:.4f}", f"{entry['naive_mae']:.4f}")
        console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
