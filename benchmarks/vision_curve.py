"""Accuracy while a classifier trains, over the time and the steps it took, and the tables and the picture of that."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.report import Table
from benchmarks.vision_training import Outcome, train

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds on the wall; or of the cores that this process got, which others lengthen by competing for caches alone."""


@dataclass(frozen=True)
class Curve(Outcome):
    """A training and its way there.

    Attributes:
        spent: seconds by the study's clock, validation left out.
        points: (step, seconds spent, accuracy on the validation pictures) in order.
    """

    spent: float = 0.0
    points: list[list[float]] = field(default_factory=list)

    def at_step(self, step: int) -> list[float] | None:
        """The point at a step, None if nobody looked then."""
        return next((point for point in self.points if point[0] == step), None)

    def at_time(self, seconds: float) -> float | None:
        """The accuracy when these seconds were spent, on the line between two looks; None before the first."""
        if not self.points or seconds < self.points[0][1]:
            return None
        _, spent, val = zip(*self.points, strict=True)
        return float(np.interp(seconds, spent, val))


class Watch(Callback):
    """Notes each validation of a training, and ends the training when its time is up.

    Args:
        clock: one of :data:`CLOCKS`; it stands while validation goes on.
        seconds: of training; None: as many as its steps need.
    """

    def __init__(self, clock: str, seconds: float | None) -> None:
        self.clock, self.seconds = CLOCKS[clock], seconds
        self.points: list[list[float]] = []
        self._before, self._since = 0.0, 0.0

    @property
    def spent(self) -> float:
        """Seconds of training so far, while it goes on."""
        return self._before + self.clock() - self._since

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = self.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is not None and self.spent >= self.seconds:
            trainer.should_stop = True  # Lightning validates once more

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = self.spent

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        val = float(trainer.callback_metrics["val/top1"])
        self.points.append([trainer.global_step, round(self._before, 3), val])
        self._since = self.clock()


def train_watched(config: dict[str, Any], clock: str, seconds: float | None) -> Curve:
    """Train as :func:`benchmarks.vision_training.train` does, for so many seconds or all of ``trainer.max_steps``."""
    watch = Watch(clock, seconds)
    outcome = train(config, [watch])
    spent = watch.points[-1][1] if watch.points else 0.0
    return Curve(**asdict(outcome), spent=spent, points=watch.points)


# ------------------------------------------------------------------------------------------------------------ tables

Curves = Mapping[str, Sequence[Curve]]
"""By model, one for each seed."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and, of several, standard deviation; in points from accuracies in [0, 1]."""
    points = [100 * value for value in values]
    return statistics.fmean(points), statistics.stdev(points) if len(points) > 1 else None


def time_table(curves: Curves, batch: int, title: str) -> Table:
    """A row per model: what it came to when its time or its steps were over."""
    table = Table(
        title,
        ["model", "parameters", "seeds", "steps", "pictures seen", "seconds spent", "val top-1, %", "± val",
         "test top-1, %", "± test"],
    )  # fmt: skip
    for name, found in curves.items():
        steps = round(statistics.fmean(curve.steps for curve in found))
        spent = round(statistics.fmean(curve.spent for curve in found))
        val = mean_and_spread([curve.val for curve in found])
        test = mean_and_spread([curve.test for curve in found])
        table.add(name, found[0].parameters, len(found), steps, steps * batch, spent, *val, *test)
    return table


def common_step(curves: Curves) -> int | None:
    """The last step at which all trainings were looked at."""
    looks = [{int(point[0]) for point in curve.points} for found in curves.values() for curve in found]
    common = set.intersection(*looks) if looks else set()
    return max(common, default=None)


def step_table(curves: Curves, batch: int) -> Table | None:
    """A row per model after equally many steps, None if there is no step at which all were looked at."""
    step = common_step(curves)
    if step is None:
        return None
    table = Table(
        f"Equal steps: after {step:,}, {step * batch:,} pictures",
        ["model", "seeds", "val top-1, %", "± val", "seconds spent"],
    )
    for name, found in curves.items():
        points = [point for curve in found if (point := curve.at_step(step)) is not None]
        spent = round(statistics.fmean(point[1] for point in points))
        table.add(name, len(points), *mean_and_spread([point[2] for point in points]), spent)
    return table


def progress_table(curves: Curves, seconds: float, unit: str, rows: int = 10) -> Table:
    """Validation accuracy at each tenth of the time, a column per model; between two looks, what lies between."""
    table = Table("Accuracy on validation pictures by time, %", [unit, *curves])
    for row in range(1, rows + 1):
        now = seconds * row / rows
        values = [[curve.at_time(now) for curve in found] for found in curves.values()]
        means = [None if None in value else mean_and_spread([x for x in value if x is not None])[0] for value in values]
        table.add(f"{now / 60:g}", *means)
    return table


def draw(curves: Curves, path: Path, unit: str) -> Path:
    """Accuracy over time and over steps, one line per training, as an SVG that is the same for the same curves."""
    with rc_context({"svg.hashsalt": "greylag", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        by_time, by_step = figure.subplots(1, 2, sharey=True)
        for number, (name, found) in enumerate(curves.items()):
            for seed, curve in enumerate(found):
                steps, spent, val = zip(*curve.points, strict=True)
                style = {"color": f"C{number}", "label": name if seed == 0 else None, "linewidth": 1.3}
                percent = [100 * value for value in val]
                by_time.plot([value / 60 for value in spent], percent, **style)
                by_step.plot(steps, percent, **style)
        by_time.set(xlabel=unit, ylabel="validation top-1, %")
        by_step.set(xlabel="steps")
        by_step.legend(loc="lower right", frameon=False)
        for axes in (by_time, by_step):
            axes.grid(alpha=0.3)
            axes.set_xlim(left=0)
        figure.savefig(path, metadata={"Date": None})
    return path
