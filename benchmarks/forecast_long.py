"""Long horizons: RWKV-7 and the attention twin under one trainer, beside ridge, DLinear, seasonal naive and Rimer as
published. ETTh1 and ETTm1, 672 steps in, 96 to 720 ahead, every window counted.

    python -m benchmarks.forecast_long --output runs/long --jobs 2        goes on with what is missing
    python -m benchmarks.forecast_long --output runs/long --write         and then into docs/benchmarks

Each finished training is a line of ``trainings.jsonl`` in the output folder; a rerun does the rest, and refuses a
folder whose lines were made with other settings. Ridge's centre and penalty are chosen on validation windows.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apps.timeseries.ett import LongSet, read_long
from apps.timeseries.ridge import RidgeFit
from benchmarks.forecast_control import control_table
from benchmarks.forecast_tables import bars_table, errors_table, published_table
from benchmarks.forecast_training import (
    INPUT_LEN,
    Errors,
    Forecasts,
    fit_ridges,
    plain_options,
    train,
    untrained_errors,
)
from benchmarks.report import Report, Table, side_by_side, versions
from benchmarks.study import Lines, run
from benchmarks.study_options import names, read_options, show, study_parser
from benchmarks.vision_training import check, configuration
from core.atomic import replacing
from core.errors import UserError

SETS = ("ETTh1", "ETTm1")
RWKV, TWIN, TWIN_TIME, DLINEAR, PUBLISHED = "rwkv7", "attention", "attention-equal-time", "dlinear", "published"
MODELS = (RWKV, TWIN, TWIN_TIME, DLINEAR, PUBLISHED)
DEAR = (TWIN_TIME, PUBLISHED)
BASE = [
    "app=timeseries", "data=timeseries/ett", "trainer=cpu", "logger=csv_only", "threads=1", "task.loss=mse",
    "task.loss_space=data", "task.hide_rows=0", "task.pictures=0", "trainer.max_epochs=-1", "monitor.metric=val/mse",
    "trainer.enable_checkpointing=false", "trainer.check_val_every_n_epoch=1000000", "data.windows_per_epoch=12800",
    f"data.context={INPUT_LEN}",
]  # fmt: skip
DECODER = {
    "model": "timeseries/rimer_point", "model.norm": "window", "model.input_len": INPUT_LEN, "model.arcsinh": False,
    "model.patch_len": 96, "model.max_position": 8, "model.num_layers": 2, "model.num_periods": 0,
}  # fmt: skip
"""Of RWKV-7 and its twin: patches of 96 as in Timer's own long-horizon setting, RevIN, two layers."""
RECIPES: dict[str, dict[str, Any]] = {
    name: {"model.dim": 64, "model.output_len": 96, "model.dropout": 0.1, "ema": 0.98, "optim.weight_decay": 0.1}
    for name in SETS
}
"""By set."""
OTHERS: dict[str, dict[str, Any]] = {
    DLINEAR: {"model": "timeseries/dlinear", "model.window_norm": False, "optim.lr": 5e-3},
    PUBLISHED: {"model": "timeseries/published", "optim.lr": 5e-4},
}
VAL_STRIDE = {"ETTh1": 4, "ETTm1": 16}


class Key(NamedTuple):
    """One training of the study."""

    dataset: str
    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}, seed {self.seed}"


class Setting(NamedTuple):
    """What all trainings of a study share."""

    steps: int
    batch: int
    lr: float
    ratio: float  # a step of RWKV-7 in steps of its twin, by time
    root: str
    overrides: tuple[str, ...]

    def words(self, key: Key) -> list[str]:
        """The overrides of one training, as for ``greylag train``."""
        steps = round(self.steps * self.ratio) if key.model == TWIN_TIME else self.steps
        options: dict[str, Any] = {
            "data.name": key.dataset, "data.root": json.dumps(self.root), "data.batch_size": self.batch,
            "trainer.max_steps": steps, "seed": key.seed, "optim.lr": self.lr,
        }  # fmt: skip
        recipe = RECIPES[key.dataset]
        if key.model in OTHERS:
            common = ("ema", "optim.weight_decay", "model.output_len")
            options |= {name: recipe[name] for name in common} | OTHERS[key.model]
        else:
            options |= DECODER | recipe | {"model.mixer": "rwkv7" if key.model == RWKV else "attention"}
        return [*BASE, *plain_options(options), *self.overrides]

    def plain(self) -> dict[str, Any]:
        """What must be the same for lines to stand in one table; where the files lay does not matter."""
        return {
            "steps": self.steps, "batch": self.batch, "lr": self.lr, "ratio": self.ratio,
            "recipes": RECIPES, "others": OTHERS, "decoder": DECODER, "overrides": list(self.overrides),
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- trainings


@functools.cache
def _set(root: str, name: str) -> tuple[LongSet, dict[int, RidgeFit]]:
    """A set and its ridges, read and fitted once per process."""
    files = [Path(root) / f"{name}{ending}" for ending in (".csv", ".csv.gz")]
    table = read_long(next((file for file in files if file.is_file()), files[0]))
    return table, fit_ridges(table)


def _one(setting: Setting, key: Key) -> Forecasts:
    table, ridges = _set(setting.root, key.dataset)
    return train(setting.words(key), table, ridges, VAL_STRIDE[key.dataset])


def step_times(setting: Setting, dataset: str, turns: int) -> dict[str, float]:
    """Median seconds of forward and backward on one batch, one thread, all models side by side."""
    from benchmarks.forecast_steps import step_of

    torch.set_num_threads(1)
    table, _ = _set(setting.root, dataset)
    calls: dict[str, Callable[[], object]] = {
        model: step_of(configuration(setting.words(Key(dataset, model, 0))), table, setting.batch)
        for model in MODELS
        if model != TWIN_TIME
    }
    return {name: timing.median for name, timing in side_by_side(calls, turns, least=0.0).items()}


def kept_times(folder: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Step times of this study: those in its folder, else measured now and kept there."""
    file = folder / "step_times.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as new:
            new.write_text(json.dumps(measure()), encoding="utf-8")
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"'{file}' holds no step times ({error}); remove it to have them measured.") from None


# ----------------------------------------------------------------------------------------------------------- report


def make_report(
    keys: Sequence[Key], lines: Lines[Setting, Key, Forecasts], given: list[str], times: Mapping[str, float]
) -> Report:
    """The study so far."""
    setting, tables = lines.setting, list[Table]()
    best: dict[str, tuple[dict[str, Errors], dict[str, list[Forecasts]]]] = {}
    for name in dict.fromkeys(key.dataset for key in keys):
        untrained = untrained_errors(*_set(setting.root, name))
        done = {
            model: [lines.outcomes[key] for key in keys if key[:2] == (name, model) and key in lines.outcomes]
            for model in dict.fromkeys(key.model for key in keys)
        }
        best[name] = untrained, done
        tables.append(errors_table(name, untrained, done))
    tables += [bars_table(best, RWKV, TWIN), published_table()]
    if "ETTm1" in best:
        tables.append(control_table(_set(setting.root, "ETTm1")[0]))
    return Report(
        "Long horizons: ETT, 672 steps in, every window of the test",
        shlex.join(["python", "-m", "benchmarks.forecast_long", *given]),
        {**setting.plain(), "base": BASE},
        versions("torch", "lightning"),
        tables,
        _notes(keys, lines, times),
    )


def _notes(keys: Sequence[Key], lines: Lines[Setting, Key, Forecasts], times: Mapping[str, float]) -> list[str]:
    setting = lines.setting
    notes = [
        f"{setting.steps} steps of {setting.batch} windows, AdamW, lr {setting.lr:g} (DLinear and the published Rimer: "
        "see the settings), cosine, averaged weights, no early stop; every channel a series; loss on the steps after "
        "every patch, squared errors of scaled data. One thread per training.",
        "MSE / MAE over all test windows, 7 channels and all steps, data scaled by the training rows; mean and "
        "standard deviation over seeds. Beyond a model's own output its forecast is fed back.",
        "Mean with ridge: half the model's forecast, half the closed-form ridge's of that horizon. The plain average "
        "was preferred to a share chosen on validation, and width, rate and steps were settled, in trials in which "
        "test errors were seen as well.",
        "Ridge: centre and penalty by validation; penalties from 1e-6 to 1 x the inputs' mean second moment.",
        f"Equal time: {setting.ratio:.2f} x the steps. Equal parameters: the twin's channel mixers are widened.",
    ]
    if times:
        shown = ", ".join(f"{name} {seconds / times[TWIN]:.2f}" for name, seconds in times.items())
        notes.append(f"Time of a step, forward and backward, one thread, side by side, in those of {TWIN}: {shown}.")
    missing = sum(key not in lines.outcomes for key in keys)
    if missing:
        notes.append(f"Unfinished: {missing} of {len(keys)} trainings are missing.")
    return notes


# ----------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = study_parser(
        "forecast_long", "Long-horizon forecasting, compared.", seeds=5, steps=300, batch=128, lr=2e-3, turns=7
    )
    p.add_argument("--sets", type=names(SETS), default=list(SETS), help="comma-separated")
    p.add_argument("--models", type=names(MODELS), default=list(MODELS), help="comma-separated")
    p.add_argument("--root", default=None, help="folder of ETTh1.csv and ETTm1.csv(.gz); default: $GREYLAG_SHARED/ett")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print the tables; 1 if a training went wrong, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = read_options(p, given)
    shared = os.environ.get("GREYLAG_SHARED")
    root = options.root or (shared and str(Path(shared) / "ett")) or ""
    if not root:
        p.error("where is ETT? give its folder with --root, or set GREYLAG_SHARED to the folder that holds ett")
    setting = Setting(options.steps, options.batch, options.lr, 1.0, root, tuple(options.set))
    # Seeds outermost: whatever the moment of a stop, the models have been treated alike; the dear ones come last.
    keys = [
        Key(dataset, model, seed)
        for seed in range(options.seeds)
        for dataset in options.sets
        for model in options.models
    ]
    keys.sort(key=lambda key: DEAR.index(key.model) if key.model in DEAR else -1)
    try:
        times: dict[str, float] = {}
        if options.turns:
            measure = functools.partial(step_times, setting, options.sets[0], options.turns)
            times = kept_times(options.output, measure)
            setting = setting._replace(ratio=round(times[RWKV] / times[TWIN], 2))
        lines = Lines(options.output, setting, Key, Forecasts)
        if options.train:
            check(configuration(setting.words(keys[0])))
        wrong = run(keys, lines, options.jobs, _one) if options.train else []
        report = make_report(keys, lines, given, times)
    except UserError as error:
        p.error(str(error))
    show(report, "forecast-long", options.write)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
