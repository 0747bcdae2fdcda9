"""VRWKV-7 against timm's DeiT and the attention twin on CIFAR-10, at equal parameters, equal time and equal steps.

    python -m benchmarks.vision_cifar --output runs/cifar --minutes 10                 one after another
    python -m benchmarks.vision_cifar --output runs/cifar --cpu-minutes 20 --jobs 3    side by side, machine shared
    python -m benchmarks.vision_cifar --output runs/cifar --device cuda                the bar: 95 % within 10 minutes
    python -m benchmarks.vision_cifar --output runs/cifar --no-train --write ...       into docs/benchmarks

All models train in the app's own trainer on the same batches with the same recipe. On a CPU the learning rate stays
constant after its warm-up and the averaged weights (EMA) are judged, so that every point of a training is what a
training that ended there would have given: one training per seed serves equal steps, equal time and the curve. On a
GPU steps are fixed and the rate falls along a cosine. Finished trainings are lines of ``trainings.jsonl`` in the
output folder; a rerun does the rest.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.report import Report, Table, versions
from benchmarks.study import Lines, matching_width, run
from benchmarks.vision_curve import (
    Curve,
    Curves,
    draw,
    mean_and_spread,
    progress_table,
    step_table,
    time_table,
    train_watched,
)
from benchmarks.vision_training import build, check, cifar_root, configuration, picture_facts
from core.errors import UserError

OURS, TWIN, RIVAL = "VRWKV-7", "attention twin", "timm DeiT"
MODELS = (OURS, TWIN, RIVAL)
HEAD = 32  # channels per head, of all three
BASE = [
    "app=vision", "data=vision/cifar10", "logger=csv_only", "task.pictures=0", "trainer.max_epochs=-1",
    "trainer.enable_checkpointing=false", "trainer.check_val_every_n_epoch=null",
]  # fmt: skip
RECIPES: dict[str, list[str]] = {
    "cpu": [
        "trainer=cpu", "data.augment.auto_augment=null", "data.augment.re_prob=0", "ema=0.99",
        "optim.schedule=constant", "optim.warmup=50",
    ],
    "cuda": [
        "trainer=gpu", "data.num_workers=12", "task.mixup=0.2", "task.cutmix=1.0", "task.mix_prob=0.5", "ema=0.999",
    ],
}  # fmt: skip
"""A few epochs, with crops and flips alone; or enough of them for strong augmentation. The GPU's was never run."""
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {"width": 128, "depth": 4, "patch": 4, "batch": 64, "lr": 2e-3, "steps": None, "every": 100},
    "cuda": {"width": 192, "depth": 12, "patch": 4, "batch": 256, "lr": 2e-3, "steps": 14000, "every": 1750},
}
BAR = {"top-1": 0.95, "parameters": 10_000_000, "seconds": 600.0}
"""Of VRWKV-7 on a GPU: test accuracy at least, parameters and wall seconds of training at most."""


_CLOCK_NOTES = {
    "cpu": "CPU time is the process's on all cores: others on the machine lengthen it by competing for caches alone.",
    "wall": "It is wall time: another process on the machine lengthens it.",
}


class Key(NamedTuple):
    """One training."""

    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}, seed {self.seed}"


class Setting(NamedTuple):
    """What all trainings share: shape of the models, recipe, and how long they train."""

    device: str
    width: int
    depth: int
    patch: int
    batch: int
    lr: float
    clock: str
    seconds: float | None
    steps: int | None
    every: int
    threads: int
    root: str
    overrides: tuple[str, ...]

    def words(self, key: Key) -> list[str]:
        """The overrides of one training, as for ``greylag train``."""
        return [
            *BASE, *RECIPES[self.device], *model_words(key.model, self.width, self.depth, self.patch),
            f"data.root={json.dumps(self.root)}", f"data.batch_size={self.batch}", f"optim.lr={self.lr}",
            f"trainer.max_steps={self.steps or -1}", f"trainer.val_check_interval={self.every}",
            f"threads={self.threads}", f"seed={key.seed}", *self.overrides,
        ]  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """What must be the same for lines to stand in one table; where the pictures lay does not matter."""
        return {**self._asdict(), "overrides": list(self.overrides), "root": None}


Trainings = Lines[Setting, Key, Curve]


@functools.cache
def model_words(model: str, width: int, depth: int, patch: int) -> list[str]:
    """The overrides of one contestant; DeiT's MLPs are widened until it has VRWKV-7's parameters."""
    ours = [
        "model=vision/nano", f"model.embed_dim={width}", f"model.depth={depth}", f"model.head_dim={HEAD}",
        f"model.patch_size={patch}",
    ]  # fmt: skip
    if model != RIVAL:
        return ours if model == OURS else [*ours, "model.mixer=attention"]

    def words(hidden: int) -> list[str]:
        # timm truncates width * ratio.
        options = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": width // HEAD,
                   "mlp_ratio": (hidden + 0.5) / width}  # fmt: skip
        return [
            "model=vision/timm",
            "model.architecture=deit_tiny_patch16_224",
            *(f"++model.options.{name}={value}" for name, value in options.items()),
        ]

    return words(matching_width(lambda hidden: parameters(words(hidden)), parameters(ours), 4 * width))


def parameters(words: Sequence[str]) -> int:
    """Of the model that these overrides build for CIFAR-10."""
    task = build(configuration([*BASE, "trainer=cpu", *words]), picture_facts())
    return sum(p.numel() for p in task.model.parameters())


def _one(setting: Setting, key: Key) -> Curve:
    return train_watched(configuration(setting.words(key)), setting.clock, setting.seconds)


# ----------------------------------------------------------------------------------------------------------- report


def make_report(keys: Sequence[Key], lines: Trainings, given: list[str], jobs: int) -> Report:
    """The tables of the finished trainings."""
    setting = lines.setting
    curves = by_model(keys, lines)
    dataset = next((curve.dataset for curve in lines.outcomes.values()), "no training yet")
    title = f"{_budget(setting)} of training each" if setting.seconds else f"{setting.steps:,} steps of training each"
    tables: list[Table | None] = [time_table(curves, setting.batch, title)] if curves else []
    if curves:
        tables.append(step_table(curves, setting.batch))
    if curves and setting.seconds:
        tables.append(progress_table(curves, setting.seconds, _unit(setting)))
    return Report(
        f"VRWKV-7, DeiT and the attention twin on {dataset}, equal parameters",
        shlex.join(["python", "-m", "benchmarks.vision_cifar", *given]),
        {**setting.plain(), "base": BASE, "recipe": RECIPES[setting.device]},
        versions("torch", "timm", "lightning"),
        [table for table in tables if table is not None],
        list(_notes(keys, lines, jobs)),
    )


def by_model(keys: Sequence[Key], lines: Trainings) -> Curves:
    """The finished trainings of each model that has any."""
    found = {model: [lines.outcomes[key] for key in keys if key.model == model and key in lines.outcomes]
             for model in dict.fromkeys(key.model for key in keys)}  # fmt: skip
    return {model: curves for model, curves in found.items() if curves}


def _budget(setting: Setting) -> str:
    assert setting.seconds is not None
    return f"Equal time: {setting.seconds / 60:g} {_unit(setting)}"


def _unit(setting: Setting) -> str:
    return "minutes of CPU time" if setting.clock == "cpu" else "minutes"


def _notes(keys: Sequence[Key], lines: Trainings, jobs: int) -> Sequence[str]:
    setting = lines.setting
    rate = "cosine" if setting.device == "cuda" else "constant after 50 steps of warm-up"
    notes = [
        f"All: width {setting.width}, depth {setting.depth}, heads of {HEAD}, patches of {setting.patch} pixels, "
        f"batches of {setting.batch}, AdamW, lr {setting.lr:g} {rate}, label smoothing 0.1, averaged weights (EMA). "
        "One recipe for all; its rate was guessed from short runs of VRWKV-7 alone, and tuned for none.",
        "DeiT: timm's deit_tiny_patch16_224 (class token, SDPA) at this width and depth. The twin: VRWKV-7's skeleton "
        "with SDPA and GELU MLPs. The MLPs of both are widened until the parameters are equal.",
        "Time is that of training, data included, validation not. "
        + _CLOCK_NOTES[setting.clock],
        f"{jobs} at a time, PyTorch threads of each: {setting.threads}. Noise does not touch the comparison by steps.",
    ]  # fmt: skip
    seeds = len({key.seed for key in keys})
    if seeds == 1:
        notes.append("One seed: no spread over seeds is known, and differences of a point or two mean nothing.")
    if lines.outcomes:
        sizes = next(iter(lines.outcomes.values())).sizes
        notes.append("Pictures: " + ", ".join(f"{size:,} {split}" for split, size in sizes.items()) + ".")
    if missing := sum(key not in lines.outcomes for key in keys):
        notes.append(f"Unfinished: {missing} of {len(keys)} trainings are missing.")
    return notes


def verdict(curves: Curves) -> tuple[bool, str]:
    """Whether VRWKV-7 clears :data:`BAR`, and the sentence that says so."""
    found = curves.get(OURS, [])
    if not found:
        return False, f"no training of {OURS}: the bar is not tested"
    top1 = mean_and_spread([curve.test for curve in found])[0]
    size, longest = found[0].parameters, max(curve.seconds for curve in found)
    passed = top1 >= 100 * BAR["top-1"] and size <= BAR["parameters"] and longest <= BAR["seconds"]
    return passed, (
        f"{'passed' if passed else 'missed'}: test top-1 {top1:.2f} % (wanted {100 * BAR['top-1']:g}), "
        f"{size:,} parameters (at most {BAR['parameters']:,}), {longest:.0f} s (at most {BAR['seconds']:g})"
    )


# ----------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.vision_cifar", description="CIFAR-10, against DeiT and the twin.")
    p.add_argument("--output", type=Path, required=True, help="folder of the finished trainings; a rerun goes on")
    p.add_argument("--device", choices=list(SHAPES), default="cpu", help="cuda: with the bar, exit status 1 below it")
    p.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    p.add_argument("--seeds", type=int, default=1, help="trainings of each, seeds 0, 1, ...")
    time = p.add_mutually_exclusive_group()
    time.add_argument("--minutes", type=float, default=None, help="of training, on the wall; default 10 on a CPU")
    time.add_argument("--cpu-minutes", type=float, default=None, help="of the process's CPU time instead")
    for name in ("width", "depth", "patch", "batch", "steps", "every"):
        shown = " and ".join(f"{shape[name]} on {device}" for device, shape in SHAPES.items())
        p.add_argument(f"--{name}", type=int, default=None, help=f"default {shown}")
    p.add_argument("--lr", type=float, default=None)
    p.add_argument("--threads", type=int, default=None, help="of each training; default: the cores, over --jobs")
    p.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    p.add_argument("--root", default=None, help="CIFAR-10 in class folders; default: $GREYLAG_SHARED/cifar10")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for greylag train; repeatable")
    p.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="or the tables alone")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/vision-cifar-<machine>.json, .md, .svg")
    return p


def _setting(p: argparse.ArgumentParser, options: argparse.Namespace) -> Setting:
    shape = {name: default if getattr(options, name) is None else getattr(options, name)
             for name, default in SHAPES[options.device].items()}  # fmt: skip
    minutes = options.minutes if options.cpu_minutes is None else options.cpu_minutes
    if minutes is None and options.device == "cpu" and shape["steps"] is None:
        minutes = 10.0
    for name, value in {**shape, "minutes": minutes, "seeds": options.seeds, "jobs": options.jobs}.items():
        if value is not None and value <= 0:
            p.error(f"--{name} must be above 0, got {value}")
    if shape["width"] % HEAD:
        p.error(f"--width must be a multiple of {HEAD}, got {shape['width']}")
    return Setting(
        **shape,
        device=options.device,
        clock="wall" if options.cpu_minutes is None else "cpu",
        seconds=None if minutes is None else 60.0 * minutes,
        threads=options.threads or max(1, torch.get_num_threads() // options.jobs),
        root=cifar_root(options.root, needed=options.train),
        overrides=tuple(options.set),
    )


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print the tables; 1 if a training went wrong or the bar is missed, 2 if it cannot run."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given)
    if options.device == "cuda" and options.train and not torch.cuda.is_available():
        p.error("--device cuda: torch sees no GPU here, and the bar is one for a GPU")
    try:
        setting = _setting(p, options)
        os.environ["OMP_NUM_THREADS"] = str(setting.threads)  # inherited by the processes that train
        keys = [Key(model, seed) for seed in range(options.seeds) for model in options.models]
        lines = Trainings(options.output, setting, Key, Curve)
        if options.train:
            check(configuration(setting.words(keys[0])))
        wrong = run(keys, lines, options.jobs, _one) if options.train else []
    except UserError as error:
        p.error(str(error))
    report = make_report(keys, lines, given, options.jobs)
    passed, sentence = verdict(by_model(keys, lines)) if options.device == "cuda" else (True, "")
    report.notes += [f"The bar: {sentence}."] if sentence else []
    if options.write:
        _write(report, by_model(keys, lines), setting)
    print(report.markdown())
    return int(bool(wrong) or not passed)


def _write(report: Report, curves: Curves, setting: Setting) -> None:
    path = report.default_path("vision-cifar")
    if curves:
        picture = draw(curves, path.with_suffix(".svg"), _unit(setting))
        report.notes.append(f"The curves: ![accuracy over time and over steps]({picture.name})")
    print("written:", *report.write(path), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
