"""The smallest app there can be: two classes of points. The harness is tested with it, without waiting for a model.

It has what makes resuming hard: dropout, augmentation, batch norm, shuffling. TINY_PAUSE_AT=n makes training wait
for a second in its n-th batch, after touching the file TINY_MARKER: time to be killed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from core.errors import UserError
from core.pipeline import Pipeline
from core.train.data import DataModule
from core.train.task import Task


class Noisy(TensorDataset):
    """Points with noise drawn anew each time: augmentation."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point, target = super().__getitem__(index)
        return point + 0.1 * torch.randn_like(point), target


class TinyData(DataModule):
    def __init__(self, items: int = 96, width: int = 8, **loader: Any) -> None:
        super().__init__(**loader)
        self.items, self.width = items, width

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        points = torch.randn(self.items * 2, self.width, generator=generator)
        targets = (points[:, 0] + points[:, 1] > 0).long()
        n = self.items
        self.train_set = Noisy(points[:n], targets[:n])
        self.val_set = TensorDataset(points[n : n + n // 2], targets[n : n + n // 2])
        self.test_set = TensorDataset(points[n + n // 2 :], targets[n + n // 2 :])

    def describe(self) -> dict[str, Any]:
        return {"width": self.width, "class_names": ["below", "above"]}


def build(config: dict[str, Any]) -> nn.Module:
    hidden, width = config["model"]["hidden"], config["data"]["width"]
    if config["model"]["plain"]:
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(hidden, 2),
    )


class TinyTask(Task):
    def __init__(
        self, model: dict[str, Any], optim: dict[str, Any], data: dict[str, Any], nan_at: int | None = None
    ) -> None:
        super().__init__(model=model, optim=optim, data=data)

    def build_model(self) -> nn.Module:
        return build(dict(self.hparams))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._pause()
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss * float("nan") if self.global_step == self.hparams["nan_at"] else loss

    def _pause(self) -> None:
        if self.trainer.fit_loop.total_batch_idx == int(os.environ.get("TINY_PAUSE_AT", -1)):
            Path(os.environ["TINY_MARKER"]).touch()
            time.sleep(1.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, split: str, batch: Any) -> None:
        logits = self.model(batch[0])
        right = (logits.argmax(-1) == batch[1]).float().mean()
        size = len(batch[1])
        self.log(f"{split}/loss", F.cross_entropy(logits, batch[1]), sync_dist=True, batch_size=size)
        self.log(f"{split}/accuracy", right, sync_dist=True, batch_size=size)

    def write_report(self, folder: Path, data: Any, metrics: dict[str, float], history: list[Any]) -> Path:
        page = folder / "index.html"
        page.write_text(f"<p>{len(history)} epochs, {len(data.test_set)} items, {metrics['test/accuracy']}")
        return page


class TinyPipeline(Pipeline):
    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        return build(config)

    def __call__(self, inputs: Any) -> list[str]:
        with torch.inference_mode():
            names = self.config["data"]["class_names"]
            return [names[i] for i in self.model(torch.as_tensor(inputs)).argmax(-1).tolist()]

    def example_inputs(self) -> tuple[Tensor, ...]:
        return (torch.zeros(2, self.config["data"]["width"]),)

    def predict_files(self, input: str, output: Path | None = None, *, repeat: int = 1) -> int:
        if not Path(input).is_file():
            raise UserError(f"There is no file '{input}'.")
        answers = self(json.loads(Path(input).read_text())) * repeat
        if output is None:
            print(answers)
        else:
            output.write_text(json.dumps(answers))
        return 0
