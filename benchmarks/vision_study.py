"""The trainings of the scan study: what each is, how all get equal parameters, and the file of the finished ones."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.vision_training import Outcome, build, configuration, picture_facts
from core.atomic import replacing
from core.errors import UserError
from core.train.runs import revision

LINES = "trainings.jsonl"
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


@functools.cache
def _hidden_dim(common: tuple[str, ...], scan: str, shift: str) -> int:
    """The channel mixers' width, a multiple of 4, that gives the parameters of the model with the quad shift.

    A shift brings one factor per channel for each input that mixes; without it the mixers become a little wider.
    """
    config = configuration([*common, f"model.scan={scan}", f"model.token_shift={shift}"])
    model = config["model"]
    hidden = model["hidden_dim"] or 4 * model["embed_dim"]

    def parameters(**other: Any) -> int:
        task = build({**config, "model": {**model, "hidden_dim": hidden, **other}}, picture_facts())
        return sum(p.numel() for p in task.model.parameters())

    missing = parameters(token_shift="quad") - parameters()
    per_unit = (parameters(hidden_dim=hidden + 4) - parameters()) / 4
    return hidden + 4 * round(missing / per_unit / 4)


class Lines:
    """The finished trainings in a folder, one JSON object a line.

    Raises:
        UserError: a line made with other settings, or one that is no training.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.file, self.setting = folder / LINES, setting
        self.outcomes: dict[Key, Outcome] = {}
        self._read()

    def _read(self) -> None:
        if not self.file.is_file():
            return
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                setting, key, outcome = row["setting"], Key(**row["key"]), Outcome(**row["outcome"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"Line {number} of '{self.file}' is no finished training ({error}).") from None
            wanted = self.setting.plain()
            for name, value in wanted.items():
                if setting.get(name) != value:
                    raise UserError(
                        f"'{self.file}' holds trainings with {name}={setting.get(name)}, now it is {value}: "
                        "give the same or another --output."
                    )
            self.outcomes[key] = outcome

    def add(self, key: Key, outcome: Outcome) -> None:
        """Keep one more, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "key": key._asdict(), "outcome": asdict(outcome), "setting": self.setting.plain(), "code": revision(),
            "torch": torch.__version__,
        }  # fmt: skip
        before = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        with replacing(self.file) as new:
            new.write_text(f"{before}{json.dumps(row)}\n", encoding="utf-8")
        self.outcomes[key] = outcome
