"""What a run logged, epoch by epoch: kept in the checkpoints, so that a resumed run's is whole, and as a CSV file."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from core.train.runs import write_text_atomically


class History(Checkpoint):
    """One row per epoch: epoch, step, seconds, lr and every metric.

    A ``Checkpoint`` to Lightning, which calls those last at an epoch's end: when all is logged. It must come
    before :class:`core.train.checkpoints.Checkpoints`, so that a checkpoint holds its own epoch's row.

    Args:
        file: log/history.csv; None on all processes but the first.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self._since = 0.0
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds trained, over all sessions of this run."""
        return self._before + (time.monotonic() - self._since if self._since else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._before = list(state_dict["rows"]), float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {"seconds": round(self.seconds, 3), "lr": min(rates, default=0.0)}
        row |= epoch_metrics(trainer)
        self.rows.append(row)
        if self.file is not None:
            write_csv(self.rows, self.file)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before, self._since = self.seconds, 0.0


def epoch_metrics(trainer: L.Trainer) -> dict[str, float]:
    """Every metric logged so far by name, without Lightning's per-step doubles."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        name: value
        for name, value in metrics.items()
        if not (name.endswith(("_step", "_epoch")) and name.rpartition("_")[0] in metrics)
    }


def write_csv(rows: list[dict[str, Any]], file: Path) -> None:
    """All rows, over the union of their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, text.getvalue())
