"""One short training of an image classifier in the app's own trainer, as a function from overrides to numbers.

It is what ``greylag train`` does, without the run folder: the same composed configuration, data module, task, seeds
and Lightning trainer. The pictures are decoded once per process and kept as bytes, so that a step costs what the
model costs.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from apps.vision.data import VisionData
from apps.vision.datasets import ImageSet
from apps.vision.images import open_image
from core.cli.check import problems_of
from core.cli.compose import compose_run, plain
from core.errors import UserError
from core.train.averaging import AveragedWeights
from core.train.determinism import StepSeeds
from core.train.instantiate import instantiate
from core.train.session import build_data, build_task, evaluate
from core.train.task import Task
from core.train.trainers import build_trainer

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Outcome:
    """What one training gave. Accuracies in [0, 1]; `seconds` is the wall time of all steps, data included."""

    dataset: str
    sizes: dict[str, int]  # pictures by split

    val: float
    test: float
    loss: float
    steps: int
    seconds: float
    parameters: int


def cifar_root(given: str | None, *, needed: bool) -> str:
    """CIFAR-10's folder: the one given, else the shared one; "" where there is none and none is needed.

    Raises:
        UserError: it is needed and nobody said where it is. Nothing is downloaded for a benchmark.
    """
    shared = os.environ.get("GREYLAG_SHARED")
    root = given or (shared and str(Path(shared) / "cifar10")) or ""
    if needed and not root:
        raise UserError(
            "where is CIFAR-10? give its folder with --root, or set GREYLAG_SHARED to the folder that holds cifar10"
        )
    return root


def configuration(words: list[str]) -> dict[str, Any]:
    """The configuration of ``greylag train WORDS``, plain and resolved.

    Raises:
        UserError: unknown keys, groups or options.
    """
    return plain(compose_run(words))


def check(config: dict[str, Any]) -> None:
    """Look for what would go wrong in every training of this kind, before the first. Raises UserError."""
    if problems := problems_of(config):
        raise UserError(problems[0])
    instantiate(config["data"], "data")


def train(config: dict[str, Any], callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train as `config` says, then look at all validation and test pictures; with ``ema``, by the averaged weights.

    Args:
        config: of which ``trainer.max_steps`` ends the training, unless a callback does.
        callbacks: that look on or stop it.

    Raises:
        UserError: options that do not fit; no data.
        FloatingPointError: the last loss is not finite.
    """
    data = build_data(config)
    assert isinstance(data, VisionData)
    _keep_in_memory(data, str(config["data"].get("root")))
    task = build_task(config, data)
    seeds = StepSeeds(int(config["seed"]))
    average = [AveragedWeights(float(config["ema"]))] if config["ema"] is not None else []
    trainer = build_trainer(config["trainer"], [seeds, *average, *callbacks], [])
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    loss = float(trainer.callback_metrics["train/loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} after {trainer.global_step} steps; a lower optim.lr may help")
    trainer.callbacks = [seeds]  # type: ignore[attr-defined]  # the average is in the task already
    found = evaluate(trainer, task, data, None)
    parameters = sum(p.numel() for p in task.model.parameters())
    return Outcome(
        data.title, data.describe()["sizes"], found["val/top1"], found["test/top1"], loss, trainer.global_step,
        round(seconds, 2), parameters,
    )  # fmt: skip


def build(config: dict[str, Any], facts: dict[str, Any]) -> Task:
    """The task with fresh weights, for pictures as `facts` describes them; nothing is read from disk."""
    return build_task(config, _Described(facts))


class _Described(VisionData):
    """Stands for data of which only the description is needed."""

    def __init__(self, facts: dict[str, Any]) -> None:  # the base's options would all be unused
        self.facts = facts

    def describe(self) -> dict[str, Any]:
        return self.facts


def picture_facts(size: int = 32, classes: int = 10) -> dict[str, Any]:
    """What a data module of colour pictures says of itself, as far as models and tasks read it."""
    return {
        "dataset": "made up", "class_names": [str(i) for i in range(classes)], "num_classes": classes,
        "img_size": [size, size], "in_chans": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0,
        "interpolation": "bicubic", "sizes": dict.fromkeys(SPLITS, 1), "split_seed": 0,
    }  # fmt: skip


def _keep_in_memory(data: VisionData, root: str) -> None:
    """Replace files by their pixels, (H, W, C) uint8; sets that are in memory already stay as they are."""
    for split in SPLITS:
        images = getattr(data, f"{split}_set")
        assert isinstance(images, ImageSet)
        if images.pictures and isinstance(images.pictures[0], str):
            pixels = _decoded(root, split, tuple(images.pictures))
            setattr(data, f"{split}_set", replace(images, pictures=pixels))


@functools.lru_cache(maxsize=len(SPLITS))
def _decoded(root: str, split: str, files: tuple[str, ...]) -> list[np.ndarray]:
    del root, split  # part of the key for its speed alone: the files decide
    return [np.asarray(open_image(file).convert("RGB")) for file in files]


def batch(size: int, pixels: int = 32, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Made-up normalised pictures (size, 3, pixels, pixels) and their classes (size,)."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn((size, 3, pixels, pixels), generator=draw)
    return pictures, torch.randint(classes, (size,), generator=draw)
