"""Which scan for images: every scan order, with and without the quad-directional shift, at equal parameters.

    python -m benchmarks.vision_scan --output runs/scan --jobs 2        goes on with what is missing
    python -m benchmarks.vision_scan --output runs/scan --write         and then into docs/benchmarks

CIFAR-10 in the app's own trainer. Each finished training is a line of ``trainings.jsonl`` in the output folder; a
rerun does the rest, and refuses a folder whose lines were made with other settings. The choice is made on
validation pictures; the test pictures are shown beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.report import Report, Table, side_by_side, versions
from benchmarks.study import Lines, matching_width, run
from benchmarks.study_options import names, read_options, show, study_parser
from benchmarks.vision_training import Outcome, batch, build, check, cifar_root, configuration, picture_facts, train
from core.errors import UserError
from core.layers.scan import SCANS
from core.layers.token_shift import TOKEN_SHIFTS

STUDIED = ("forward", "alternate", "split2", "split4", "cross4", "bidirectional")
SHIFTS = ("quad", "none")
BASE = [
    "app=vision", "model=vision/pico", "data=vision/cifar10", "trainer=cpu", "logger=csv_only", "threads=1",
    "model.patch_size=4", "data.augment.auto_augment=null", "data.augment.re_prob=0", "task.pictures=0",
    "trainer.max_epochs=-1", "trainer.enable_checkpointing=false", "trainer.check_val_every_n_epoch=1000000",
]  # fmt: skip
"""A model of 0.27M parameters at 64 tokens, light augmentation: what one core trains in about a minute."""


class Key(NamedTuple):
    """One training of the study."""

    scan: str
    shift: str
    seed: int

    def __str__(self) -> str:
        return f"{self.scan}, {self.shift} shift, seed {self.seed}"


class Setting(NamedTuple):
    """What all trainings of a study share."""

    steps: int
    batch: int
    lr: float
    root: str
    overrides: tuple[str, ...]

    def words(self, key: Key) -> list[str]:
        """The overrides of one training, as for ``greylag train``; parameters are made equal."""
        common = [
            *BASE,
            f"data.root={json.dumps(self.root)}",
            f"data.batch_size={self.batch}",
            f"optim.lr={self.lr}",
            f"trainer.max_steps={self.steps}",
            *self.overrides,
        ]
        own = [f"model.scan={key.scan}", f"model.token_shift={key.shift}", f"seed={key.seed}"]
        hidden = _hidden_dim(tuple(common), key.scan, key.shift)
        return [*common, *own, f"model.hidden_dim={hidden}"]

    def plain(self) -> dict[str, Any]:
        """What must be the same for lines to stand in one table; where the pictures lay does not matter."""
        return {"steps": self.steps, "batch": self.batch, "lr": self.lr, "overrides": list(self.overrides)}


Trainings = Lines[Setting, Key, Outcome]


@functools.cache
def _hidden_dim(common: tuple[str, ...], scan: str, shift: str) -> int:
    """The channel mixers' width that gives the parameters of the model with the quad shift.

    A shift brings one factor per channel for each input that mixes; without it the mixers become a little wider.
    """
    config = configuration([*common, f"model.scan={scan}", f"model.token_shift={shift}"])
    model = config["model"]

    def parameters(hidden: int, **other: Any) -> int:
        task = build({**config, "model": {**model, "hidden_dim": hidden, **other}}, picture_facts())
        return sum(p.numel() for p in task.model.parameters())

    start = model["hidden_dim"] or 4 * model["embed_dim"]
    return matching_width(parameters, parameters(start, token_shift="quad"), start)


def _one(setting: Setting, key: Key) -> Outcome:
    return train(configuration(setting.words(key)))


# ----------------------------------------------------------------------------------------------------------- tables


def step_times(pairs: Sequence[tuple[str, str]], setting: Setting, turns: int) -> dict[tuple[str, str], float]:
    """Median seconds of forward and backward on one batch, single-threaded, all side by side."""
    torch.set_num_threads(1)
    calls: dict[str, Callable[[], object]] = {}
    for scan, shift in pairs:
        config = configuration(setting.words(Key(scan, shift, 0)))
        model = build(config, picture_facts()).model
        calls[f"{scan} {shift}"] = functools.partial(_step, model, *batch(setting.batch))
    timings = side_by_side(calls, turns, least=0.0)
    return {pair: timings[" ".join(pair)].median for pair in pairs}


def _step(model: torch.nn.Module, pictures: torch.Tensor, classes: torch.Tensor) -> None:
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(pictures), classes).backward()


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def accuracy_table(keys: Sequence[Key], lines: Trainings, times: dict[tuple[str, str], float] | None) -> Table:
    """A row per scan and shift, the best on validation pictures first; pairs without any training are left out."""
    table = Table(
        "Accuracy after equal steps, mean and standard deviation over seeds",
        ["scan", "shift", "parameters", "seeds", "val top-1, %", "± val", "test top-1, %", "± test", "ms per step"],
    )
    rows = []
    for pair in dict.fromkeys(key[:2] for key in keys):
        done = [lines.outcomes[key] for key in keys if key[:2] == pair and key in lines.outcomes]
        if done:
            val, test = [100 * x.val for x in done], [100 * x.test for x in done]
            time = 1000 * times[pair] if times else None
            mean = statistics.fmean(val), _spread(val), statistics.fmean(test), _spread(test)
            rows.append((*pair, done[0].parameters, len(done), *mean, time))
    for row in sorted(rows, key=lambda row: -row[4]):
        table.add(*row)
    return table


def pooled_spread(keys: Sequence[Key], lines: Trainings) -> float | None:
    """Standard deviation of one training's validation accuracy over seeds, in points, pooled over all pairs."""
    groups = [
        [100 * lines.outcomes[key].val for key in keys if key[:2] == pair and key in lines.outcomes]
        for pair in dict.fromkeys(key[:2] for key in keys)
    ]
    variances = [statistics.variance(group) for group in groups if len(group) > 1]
    return statistics.fmean(variances) ** 0.5 if variances else None


def make_report(keys: Sequence[Key], lines: Trainings, given: list[str], turns: int) -> Report:
    """The study so far; `turns` of step times, 0 for none."""
    setting, pairs = lines.setting, list(dict.fromkeys(key[:2] for key in keys))
    times = step_times(pairs, setting, turns) if turns else None
    notes = [
        f"{setting.steps} steps of {setting.batch} pictures, AdamW, lr {setting.lr:g}, cosine; crops and flips; "
        "one thread per training.",
        "Far from trained out: which scan learns more from the same few steps, not what each reaches in the end.",
        "Without the shift the channel mixers are widened until the parameters are equal (to the nearest 4 units).",
    ]
    if lines.outcomes:
        sizes = next(iter(lines.outcomes.values())).sizes
        notes.append("Pictures: " + ", ".join(f"{size:,} {split}" for split, size in sizes.items()) + ".")
    if (spread := pooled_spread(keys, lines)) is not None:
        notes.append(
            f"One training scatters by {spread:.2f} points over seeds (validation, pooled); "
            "rows nearer to each other than about twice that are not told apart by three seeds."
        )
    if times:
        notes.append(f"ms per step: forward and backward, one thread, median of {turns} turns side by side.")
    missing = sum(key not in lines.outcomes for key in keys)
    if missing:
        notes.append(f"Unfinished: {missing} of {len(keys)} trainings are missing.")
    dataset = next((outcome.dataset for outcome in lines.outcomes.values()), "no training yet")
    return Report(
        f"Scans for images: {dataset}, equal parameters",
        shlex.join(["python", "-m", "benchmarks.vision_scan", *given]),
        {**setting.plain(), "base": BASE},
        versions("torch", "timm", "lightning"),
        [accuracy_table(keys, lines, times)],
        notes,
    )


# ----------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = study_parser("vision_scan", "Scan orders for images, compared.", seeds=3, steps=200, batch=64, lr=4e-3, turns=0)
    p.add_argument("--scans", type=names(SCANS), default=list(STUDIED), help="comma-separated")
    p.add_argument("--shifts", type=names(TOKEN_SHIFTS), default=list(SHIFTS), help="comma-separated")
    p.add_argument("--root", default=None, help="CIFAR-10 in class folders; default: $GREYLAG_SHARED/cifar10")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print the table; 1 if a training went wrong, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = read_options(p, given)
    # Seeds outermost: whatever the moment of a stop, the scans have been treated alike.
    keys = [
        Key(scan, shift, seed) for seed in range(options.seeds) for shift in options.shifts for scan in options.scans
    ]
    try:
        root = cifar_root(options.root, needed=options.train)
        setting = Setting(options.steps, options.batch, options.lr, root, tuple(options.set))
        lines = Trainings(options.output, setting, Key, Outcome)
        if options.train:
            check(configuration(setting.words(keys[0])))
        wrong = run(keys, lines, options.jobs, _one) if options.train else []
    except UserError as error:
        p.error(str(error))
    show(make_report(keys, lines, given, options.turns), "vision-scan", options.write)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
