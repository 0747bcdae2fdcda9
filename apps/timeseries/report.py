"""The report of a run: one HTML file that needs nothing beside it, and its pictures as PNG files.

``write_report`` takes plain facts, so that a test, a notebook or another trainer can write one too.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from apps.timeseries import figures
from apps.timeseries.figures import Fan
from core.train.page import CSS, table

METRICS = {
    "mase": "MASE",
    "wql": "weighted quantile loss",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "coverage_80": "inside the 80 % interval",
    "coverage_95": "inside the 95 % interval",
}


@dataclass(frozen=True)
class ReportFacts:
    """What a report tells.

    Attributes:
        title: headline, e.g. "co2".
        subtitle: one line: the model and the data.
        headline: (number, caption) pairs, most important first.
        fans: forecasts to draw.
        errors: by "model" and "seasonal_naive": metric -> value.
        by_step: see :meth:`apps.timeseries.evaluation.Breakdown.by_step`.
        by_level: see :meth:`apps.timeseries.evaluation.Breakdown.by_level`.
        forecasts: how many the numbers stand on.
        split: which part of the series they are of.
        unit: of the values, if it has a name.
        history: per epoch, "epoch" and metrics such as "train/loss", "val/mase".
        model, run: rows of the two tables.
        config: the resolved configuration as text.
        commands: (what it does, command) pairs.
    """

    title: str
    subtitle: str
    headline: Sequence[tuple[str, str]]
    fans: Sequence[Fan]
    errors: Mapping[str, Mapping[str, float]]
    by_step: Mapping[str, Sequence[float]]
    by_level: Mapping[str, float]
    forecasts: int
    split: str = "test"
    unit: str = ""
    history: Sequence[dict[str, Any]] = field(default_factory=list)
    model: Sequence[tuple[str, str]] = ()
    run: Sequence[tuple[str, str]] = ()
    config: str = ""
    commands: Sequence[tuple[str, str]] = ()


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write ``index.html`` and its PNG files into ``folder`` (made if missing); returns the HTML file."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _save(figure, folder / f"{name}.png") for name, figure in _figures(facts).items()}
    page = folder / "index.html"
    page.write_text(_page(facts, pictures), encoding="utf-8")
    return page


def curves_of(history: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """The curves worth drawing: loss of training and validation, MASE of validation; name -> (epochs, values)."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name in ("train/loss", "val/loss", "val/mase"):
        # Lightning appends "_epoch" to what is logged by step as well.
        values = [row.get(name, row.get(f"{name}_epoch")) for row in history]
        points = [
            (1.0 + float(row.get("epoch", number)), float(value))
            for number, (row, value) in enumerate(zip(history, values, strict=True))
            if value is not None
        ]
        if points:
            curves[name] = ([x for x, _ in points], [y for _, y in points])
    return curves


def _figures(facts: ReportFacts) -> dict[str, Figure]:
    result: dict[str, Figure] = {}
    if facts.fans:
        result["forecasts"] = figures.forecast_fans(facts.fans, facts.unit)
    if curves := curves_of(facts.history):
        result["curves"] = figures.training_curves(curves)
    result["steps"] = figures.error_by_step(facts.by_step, facts.unit)
    if facts.by_level:
        result["reliability"] = figures.reliability(facts.by_level)
    return result


def _save(figure: Figure, path: Path) -> str:
    """Save a figure as PNG; returns it as a data address for the page."""
    buffer = io.BytesIO()
    figures.save(figure, buffer)
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_CAPTIONS = {
    "forecasts": (
        "Forecasts",
        "The history that the model saw, its median, the intervals that hold the truth in so many cases of a hundred, "
        "and the truth, which it did not see.",
    ),
    "curves": ("Training", "By epoch; the test plays no part here. While training, parts of the inputs are hidden."),
    "steps": ("Error by step ahead", "Beside the seasonal naive forecast, which repeats the last season."),
    "reliability": (
        "Calibration",
        "How often the truth lies at or below each quantile. On the line the intervals say what they mean.",
    ),
}


def _page(facts: ReportFacts, pictures: dict[str, str]) -> str:
    text = html.escape
    cards = "".join(
        f'<div class="card"><div class="number">{text(number)}</div><div class="caption">{text(caption)}</div></div>'
        for number, caption in facts.headline
    )
    blocks = {
        name: f'<section class="{name}"><h2>{text(_CAPTIONS[name][0])}</h2><p>{text(_CAPTIONS[name][1])}</p>'
        f'<img alt="{text(_CAPTIONS[name][0])}" src="{source}"></section>'
        for name, source in pictures.items()
    }
    pair = f'<div class="pair">{blocks.get("steps", "")}{blocks.get("reliability", "")}</div>'
    commands = "".join(f"<p>{text(what)}</p><pre>{text(command)}</pre>" for what, command in facts.commands)
    config = (
        f"<details><summary>Configuration</summary><pre>{text(facts.config)}</pre></details>" if facts.config else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(facts.title)} - Greylag report</title><style>{_CSS}</style></head><body><main>
<header><div class="brand">Greylag &middot; time series</div>
<h1>{text(facts.title)}</h1><p>{text(facts.subtitle)}</p></header>
<div class="cards">{cards}</div>
{blocks.get("forecasts", "")}
{_errors(facts)}
{pair}
{blocks.get("curves", "")}
<section><h2>Facts</h2>
<div class="pair">{table("Model", facts.model)}{table("Run", facts.run)}</div>{config}</section>
<section><h2>Go on</h2>{commands}</section>
</main></body></html>
"""


def _errors(facts: ReportFacts) -> str:
    """The table of errors, the model beside the seasonal naive forecast; the better one is bold."""
    rows = []
    model, naive = facts.errors["model"], facts.errors["seasonal_naive"]
    for name, label in METRICS.items():
        if name not in model:
            continue
        here, there = model[name], naive.get(name)
        if name.startswith("coverage"):
            cells = [f"{100 * here:.1f} %", ""]
        else:
            best = [there is None or here <= there, there is not None and there < here]
            cells = [_bold(value, better) for value, better in zip((here, there), best, strict=True)]
        rows.append(f"<tr><th>{label}</th>" + "".join(f'<td class="figure">{cell}</td>' for cell in cells) + "</tr>")
    what = f"{facts.forecasts:,} {html.escape(facts.split)} forecasts."
    return (
        f"<section><h2>Errors</h2><p>{what} MASE is the mean absolute error divided by that of the seasonal naive "
        "forecast one step ahead within the history; the weighted quantile loss judges all quantiles, and of a point "
        'forecast is its absolute error divided by the sum of the values.</p><table class="errors"><tr><th></th>'
        f'<td class="figure">model</td><td class="figure">seasonal naive</td></tr>{"".join(rows)}</table></section>'
    )


def _bold(value: float | None, better: bool) -> str:
    if value is None:
        return ""
    return f"<strong>{value:.4g}</strong>" if better else f"{value:.4g}"


_CSS = (
    CSS
    + """
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
.errors { max-width: 640px; }
"""
)
