"""What one sees while a model trains: one line per epoch that stays, one live line with the time that remains."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from torch.utils._pytree import tree_leaves

from core.train.history import epoch_metrics

_REFRESH = 0.25  # seconds; reading a metric waits for the GPU


class ProgressLines(Callback):
    """Progress by rich, with throughput and ETA. Where there is no terminal, only the epochs' lines.

    Args:
        console: where to print.
        leading: metrics shown first, e.g. the monitored one.
    """

    def __init__(self, console: Console, leading: str | None = None) -> None:
        self.console, self.leading = console, leading
        self._bar: Progress | None = None
        self._line = TaskID(0)
        self._items = self._batches = 0
        self._epoch_items = 0
        self._began = self._epoch_began = self._shown_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._began = time.monotonic()
        self._items = self._batches = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._line = self._bar.add_task("starting", total=_total_batches(trainer), facts="")
        self._bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_began, self._epoch_items = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        items = batch_items(batch) * trainer.world_size
        self._items, self._batches, self._epoch_items = (
            self._items + items,
            self._batches + 1,
            self._epoch_items + items,
        )
        if time.monotonic() - self._shown_at < _REFRESH:
            return
        self._shown_at = time.monotonic()
        done = trainer.fit_loop.total_batch_idx + 1
        self._show(trainer, done, f"batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.update(self._line, description=f"{_epoch(trainer)} validating")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is None:
            return
        seconds = max(time.monotonic() - (self._epoch_began or self._began), 1e-9)
        shown = metrics_text(epoch_metrics(trainer), self.leading)
        rate = f"{self._epoch_items / seconds:,.0f}/s"
        self.console.print(f"{_epoch(trainer)}  {shown}  [dim]{rate}  {clock(seconds)}[/]", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, trainer: L.Trainer, done: int, where: str) -> None:
        assert self._bar is not None
        seconds = max(time.monotonic() - self._began, 1e-9)
        facts = [f"{self._items / seconds:,.0f} items/s"]
        total = _total_batches(trainer)
        if total is not None:
            facts.append(f"ETA {clock(seconds / max(self._batches, 1) * (total - done))}")
        live = {name: float(value) for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
        if losses := {name: value for name, value in live.items() if "loss" in name and "val" not in name}:
            facts.insert(0, metrics_text(dict(list(losses.items())[:1]), None))
        self._bar.update(
            self._line,
            completed=done,
            total=total,
            description=f"{_epoch(trainer)} {where}",
            facts="  ".join(facts),
        )


def batch_items(batch: Any) -> int:
    """Items in a batch: the length of its first tensor."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return len(leaf)
    return 1


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def metrics_text(metrics: dict[str, float], leading: str | None) -> str:
    """ "val/top1 0.9812  train/loss 0.1234", the leading one first and bold."""
    names = sorted(metrics, key=lambda name: (name != leading, not name.startswith("val/"), name))
    return "  ".join(
        f"[bold]{name} {metrics[name]:.4g}[/]" if name == leading else f"[dim]{name}[/] {metrics[name]:.4g}"
        for name in names
    )


def _epoch(trainer: L.Trainer) -> str:
    total = trainer.max_epochs
    number = trainer.current_epoch + 1
    return f"epoch {number:>{len(str(total))}}/{total}" if total and total > 0 else f"epoch {number}"


def _total_batches(trainer: L.Trainer) -> int | None:
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
    total = epochs * trainer.num_training_batches
    if trainer.max_steps and trainer.max_steps > 0:
        total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
    return int(total) if math.isfinite(total) else None
