"""The facts of a run's report, gathered from the task, its data and its errors."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apps.timeseries.data import ForecastData
from apps.timeseries.evaluation import Breakdown
from apps.timeseries.figures import Fan, fans_of
from apps.timeseries.report import ReportFacts
from apps.timeseries.windows import join
from core.train.data import DataModule
from core.train.runs import shown_path

if TYPE_CHECKING:
    from apps.timeseries.task import ForecastTask


def gather_facts(
    run: Path,
    task: ForecastTask,
    data: DataModule,
    split: str,
    breakdown: Breakdown,
    history: list[dict[str, Any]],
) -> ReportFacts:
    """What :func:`apps.timeseries.report.write_report` tells.

    Args:
        run: the run folder.
        task: with the final weights.
        data: set up; some of its forecasts are shown.
        split: "test" or "val".
        breakdown: the errors on it.
        history: see :meth:`core.train.task.Task.write_report`.
    """
    facts: dict[str, Any] = dict(task.hparams["data"])
    count = len(getattr(data, f"{split}_set"))
    config = run / "config.yaml"
    errors = breakdown.summary()
    what = "that it had never seen" if split == "test" else "that its best epoch was chosen by"
    series = f"{facts['series']:,} series" if facts["series"] != 1 else "one series"
    return ReportFacts(
        title=str(facts["dataset"]),
        subtitle=f"{_title(task)}, trained on {series}; judged on {count:,} forecasts of {task.horizon} steps {what}.",
        headline=_headline(task, errors, history),
        fans=some_fans(task, data, split),
        errors=errors,
        by_step=breakdown.by_step(),
        by_level=breakdown.by_level(),
        forecasts=count,
        split=split,
        unit=str(facts.get("unit", "")),
        history=history,
        model=_model_rows(task),
        run=_run_rows(task, data),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        commands=_commands(run, task.horizon),
    )


def some_fans(task: ForecastTask, data: DataModule, split: str) -> list[Fan]:
    """Forecasts to draw, spread evenly over a split."""
    items = getattr(data, f"{split}_set")
    most = min(task.pictures, len(items))
    if not most:
        return []
    chosen = sorted({round(i * (len(items) - 1) / max(1, most - 1)) for i in range(most)})
    batch = join([items[i] for i in chosen])
    here = type(batch)(batch.history.to(task.device), *(part.to(task.device) for part in batch[1:]))
    task.eval()
    known = isinstance(data, ForecastData)
    names: Sequence[str] = data.panel.names if known else ()
    return fans_of(
        batch, task.forecast(here), task.forecaster.quantiles, most, names=names, stamps=data.stamps if known else None
    )


def _title(task: ForecastTask) -> str:
    options = task.hparams["model"]
    if options.get("name", "rimer") != "rimer":
        return str(options["name"]).replace("_", " ").capitalize()
    mixer = str(options.get("mixer", "rwkv7"))
    return {"rwkv7": "Rimer on RWKV-7", "attention": "The attention twin of Rimer"}.get(mixer, f"Rimer with {mixer}")


def _headline(
    task: ForecastTask, errors: dict[str, dict[str, float]], history: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    model, naive = errors["model"], errors["seasonal_naive"]
    found = [(f"{model['mase']:.3f}", f"MASE (seasonal naive {naive['mase']:.3f})")]
    if naive["wql"]:
        better = 100 * (1 - model["wql"] / naive["wql"])
        found.append((f"{abs(better):.0f}%", f"{'less' if better >= 0 else 'more'} quantile loss than seasonal naive"))
    if "coverage_80" in model:
        found.append((f"{100 * model['coverage_80']:.0f}%", "of truths inside the 80 % interval"))
    parameters = sum(p.numel() for p in task.model.parameters())
    found.append((f"{parameters:,}", "trained parameters"))
    if history:
        found.append((f"{1 + max(int(row['epoch']) for row in history)}", "epochs" + _duration(history)))
    return found


def _duration(history: list[dict[str, Any]]) -> str:
    """Such as " in 70 seconds", by the last row's clock; nothing if the history kept none."""
    seconds = next((float(row["seconds"]) for row in reversed(history) if row.get("seconds")), 0.0)
    if not seconds:
        return ""
    if seconds < 100:
        return f" in {seconds:.0f} seconds"
    return f" in {seconds / 60:.1f} minutes" if seconds < 6000 else f" in {seconds / 3600:.1f} hours"


def _model_rows(task: ForecastTask) -> list[tuple[str, str]]:
    shown = {key: value for key, value in task.hparams["model"].items() if value not in (None, "")}
    if shown.get("quantiles"):
        shown["quantiles"] = ", ".join(f"{level:g}" for level in shown["quantiles"])
    return [(key.replace("_", " "), str(value)) for key, value in shown.items()]


def _run_rows(task: ForecastTask, data: DataModule) -> list[tuple[str, str]]:
    options, facts = task.hparams, task.hparams["data"]
    sizes = facts["sizes"]
    optim = {key: value for key, value in options["optim"].items() if value is not None}
    hidden = f"of {100 * options['hide_rows']:g} % of the series, up to {100 * options['hide_share']:g} %"
    if task.hide_ends:
        hidden += f"; less than a patch at the end of {100 * task.hide_ends:g} %"
    rows = [
        ("data", f"{facts['dataset']}: {sizes['train']:,} windows to train on, {sizes['val']:,} and {sizes['test']:,} "
                 "forecasts to validate and to test"),
        ("source", str(facts.get("source", ""))),
        ("steps", f"{facts['freq']}, seasons of {', '.join(map(str, facts['season_length'])) or 'no'} steps"),
        ("seed", str(data.seed)),
        ("loss", f"{options['loss']}, {options['loss_space']} space"),
        ("hidden inputs", hidden),
        ("optimiser", ", ".join(f"{key}={value}" for key, value in optim.items())),
        ("device", f"{task.device} ({platform.processor() or platform.machine()})"),
        ("versions", f"Python {platform.python_version()}, torch {torch.__version__}"),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _commands(run: Path, horizon: int) -> list[tuple[str, str]]:
    """What to do next, as commands that can be pasted."""
    folder = shown_path(run)
    return [
        (
            "Forecast your own series (columns unique_id, ds, y):",
            f"greylag predict run={folder} input=series.csv h={horizon} output=forecast.csv plot=forecast.png",
        ),
        (
            "The same in Python:",
            "import pandas as pd\nfrom apps.timeseries import Rimer\n\n"
            f'model = Rimer.load("{folder}/model")\n'
            f'forecast = model.predict(pd.read_csv("series.csv", parse_dates=["ds"]), h={horizon}, level=[80, 95])',
        ),
        ("Evaluate again, by step and by series:", f"greylag evaluate run={folder}"),
        ("Look at the curves:", f"tensorboard --logdir {folder}/log"),
    ]
