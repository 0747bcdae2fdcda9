"""The pictures of reports, TensorBoard and ``greylag predict``: from plain arrays to a matplotlib figure.

History in ink, the median in slate with its intervals around it, the truth dotted in warm orange: apart for
colour-blind readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from apps.timeseries.metrics import quantile_at
from apps.timeseries.windows import Case
from core.train.axes import INK, style

MODEL, TRUTH, OTHER = "#1d5c7a", "#d9632a", "#7b8794"
BANDS = ((95, 0.16), (80, 0.24), (50, 0.36))
"""Central intervals in per cent that are drawn, widest first, with their opacity."""


@dataclass(frozen=True)
class Fan:
    """A forecast to draw.

    Attributes:
        title: of the picture.
        past_at, past: times and values before the forecast, NaN where missing.
        ahead_at: times of the forecast steps.
        middle: the point forecast.
        bands: per cent -> (lower, upper) bounds.
        truth: what came, NaN where missing; None where it is not known.
    """

    title: str
    past_at: np.ndarray
    past: np.ndarray
    ahead_at: np.ndarray
    middle: np.ndarray
    bands: Mapping[float, tuple[np.ndarray, np.ndarray]]
    truth: np.ndarray | None = None


def fans_of(
    batch: Case,
    forecast: Tensor,
    levels: Sequence[float],
    most: int,
    *,
    names: Sequence[str] = (),
    stamps: Callable[[int, int, int], np.ndarray] | None = None,
    shown: int = 4,
) -> list[Fan]:
    """The first ``most`` cases of a batch with their forecasts (B, h, Q).

    Args:
        batch, forecast: cases and what was said of them.
        levels: of the quantiles; () for a point forecast.
        most: how many.
        names: of the series, by number.
        stamps: (series, first step, steps) -> their times; None: step numbers.
        shown: steps of history to draw, in horizons.
    """
    horizon = batch.target.shape[1]
    forecast = forecast.detach().double().cpu()
    fans = []
    for row in range(min(most, len(batch.target))):
        number, origin = batch.place[row].tolist()
        length = int(batch.length[row])
        past = min(length, shown * horizon)
        history = [part[row, length - past : length].cpu() for part in (batch.history.values, batch.history.observed)]
        times = stamps(number, origin - past, past + horizon) if stamps else np.arange(origin - past, origin + horizon)
        own = forecast[row]
        bands = {
            float(percent): (_level(own, levels, 0.5 - percent / 200), _level(own, levels, 0.5 + percent / 200))
            for percent, _ in BANDS
            if levels and levels[0] <= 0.5 - percent / 200 + 1e-9
        }
        fans.append(
            Fan(
                title=str(names[number]) if number < len(names) else f"series {number}",
                past_at=times[:past],
                past=np.where(history[1], history[0], np.nan),
                ahead_at=times[past:],
                middle=_level(own, levels, 0.5) if levels else own[:, 0].numpy(),
                bands=bands,
                truth=np.where(batch.observed[row].cpu(), batch.target[row].cpu(), np.nan),
            )
        )
    return fans


def _level(quantiles: Tensor, levels: Sequence[float], level: float) -> np.ndarray:
    return quantile_at(quantiles, levels, level).numpy()


def forecast_fans(fans: Sequence[Fan], unit: str = "", columns: int = 2) -> Figure:
    """History, median and intervals of several forecasts, and what came, side by side."""
    columns = min(columns, max(1, len(fans)))
    rows = -(-len(fans) // columns)
    figure = Figure(figsize=(10, 2.7 * max(1, rows) + (0.6 if columns == 1 else 0)), layout="constrained")
    grid = np.ravel(figure.subplots(max(1, rows), columns, squeeze=False))
    for number, axes in enumerate(grid):
        if number >= len(fans):
            axes.set_axis_off()
            continue
        draw_fan(axes, fans[number])
        if unit and number % columns == 0:
            axes.set_ylabel(unit, color=INK, fontsize=9)
    if fans:
        grid[0].legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left", ncols=2)
    return figure


def draw_fan(axes: Axes, fan: Fan) -> None:
    """One forecast; the median starts at the last value known, so that the eye can follow."""
    ahead, joined = fan.ahead_at, _joined(fan)
    axes.plot(fan.past_at, fan.past, color=INK, linewidth=1.1, label="history")
    opacity = dict(BANDS)
    for percent in sorted(fan.bands, reverse=True):
        low, high = fan.bands[percent]
        axes.fill_between(
            ahead, low, high, color=MODEL, alpha=opacity.get(int(percent), 0.2), linewidth=0, label=f"{percent:g} %"
        )
    axes.plot(*joined, color=MODEL, linewidth=1.8, label="forecast")
    if fan.truth is not None:
        axes.plot(ahead, fan.truth, color=TRUTH, linewidth=1.2, linestyle=(0, (1.5, 1.2)), label="truth")
    style(axes, fan.title)
    axes.margins(x=0.01)
    _thin_ticks(axes, fan)


def _joined(fan: Fan) -> tuple[np.ndarray, np.ndarray]:
    seen = np.flatnonzero(~np.isnan(fan.past))
    if not len(seen) or seen[-1] != len(fan.past) - 1:
        return fan.ahead_at, fan.middle
    return np.concatenate([fan.past_at[-1:], fan.ahead_at]), np.concatenate([fan.past[-1:], fan.middle])


def _thin_ticks(axes: Axes, fan: Fan) -> None:
    if np.issubdtype(fan.ahead_at.dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def training_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Loss on the left, scaled error (MASE) of the validation on the right, over epochs.

    Args:
        curves: name -> (epochs, values); names such as "train/loss", "val/mase".
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"train": OTHER, "val": MODEL}
    for name, (epochs, values) in curves.items():
        split, _, metric = name.partition("/")
        axes = left if metric == "loss" else right
        label = {"train": "training", "val": "validation"}.get(split, split)
        marker = "o" if len(epochs) < 3 else None
        axes.plot(epochs, values, color=colours.get(split, INK), linewidth=1.8, marker=marker, label=label)
    style(left, "Loss").set_xlabel("epoch", color=INK)
    style(right, "Validation error (MASE)").set_xlabel("epoch", color=INK)
    if left.lines:
        left.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def error_by_step(errors: Mapping[str, Sequence[float]], unit: str = "") -> Figure:
    """Mean absolute error of every step ahead, of the model ("mae") and the seasonal naive forecast ("naive_mae")."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = style(figure.subplots())
    steps = np.arange(1, len(errors["mae"]) + 1)
    marker = "o" if len(steps) < 3 else None
    axes.plot(steps, errors["naive_mae"], color=OTHER, linewidth=1.6, marker=marker, label="seasonal naive")
    axes.plot(steps, errors["mae"], color=MODEL, linewidth=2, marker=marker, label="model")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step ahead", color=INK)
    axes.set_ylabel(f"mean absolute error{f', {unit}' if unit else ''}", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def reliability(shares: Mapping[str, float]) -> Figure:
    """How often the truth lies at or below each quantile, beside the level that the quantile claims."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = style(figure.subplots())
    levels = [float(level) for level in shares]
    axes.plot([0, 1], [0, 1], color=TRUTH, linewidth=1.3, label="as claimed")
    axes.plot(levels, list(shares.values()), color=MODEL, linewidth=1.6, marker="o", markersize=4, label="found")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("level of the quantile", color=INK)
    axes.set_ylabel("truths at or below it", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG, SVG or PDF, by the path's ending."""
    figure.savefig(path, dpi=144, facecolor="white")
