"""When checkpoints are written, and how a run stops well.

last.ckpt is for going on: after every epoch, every so many minutes or steps, and before a stop. best.ckpt is
for keeping: the weights (averaged ones, if there is an average) that did best in validation.

last.ckpt is only written where Lightning can take a run up again without loss: between two optimiser steps, not
before a validation that is due, or at the very end of an epoch. (Its loops save and restore their counters
everywhere, but gradients half accumulated and a validation not yet run would be lost.)
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from core.errors import UserError, did_you_mean
from core.train.checkpoint_io import remove_leftovers
from core.train.runs import shown_path
from core.train.stops import (
    GO_ON,
    SAVE,
    STOP_INTERRUPT,
    STOP_NOT_FINITE,
    Interrupted,
    LossWatch,
    NotFinite,
    StopSignals,
    all_finite,
)

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Writes last.ckpt and best.ckpt; stops at signals and at losses that are not finite.

    Args:
        folder: where to; may be empty on all processes but the first, which tells the others.
        monitor: metric that says which is best; None: there is no best.ckpt.
        mode: "max" or "min".
        every_minutes: of training, None for never.
        every_steps: of the optimiser, None for never.
        check_loss_every: batches between looks at the loss; None: 1 on a CPU, 20 on a GPU.
    """

    def __init__(
        self,
        folder: str = "",
        monitor: str | None = None,
        mode: str = "max",
        every_minutes: float | None = 10,
        every_steps: int | None = None,
        check_loss_every: int | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise UserError(f"monitor.mode is '{mode}'; expected max or min.")
        self.folder = Path(folder)
        self.monitor, self.mode = monitor, mode
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self.check_loss_every = check_loss_every
        self.best: float | None = None
        self._signals = StopSignals()
        self._losses = LossWatch(1)
        self._wish = GO_ON
        self._bad_step: int | None = None
        self._saved_step: int | None = None
        self._saved_at = 0.0

    @property
    def last_path(self) -> Path:
        return self.folder / LAST

    @property
    def best_path(self) -> Path:
        return self.folder / BEST

    @property
    def final_path(self) -> Path:
        """The weights that count in the end."""
        return self.best_path if self.monitor and self.best_path.is_file() else self.last_path

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        if trainer.is_global_zero:
            remove_leftovers(self.folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._signals.install()
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._losses = LossWatch(self.check_loss_every or (1 if on_cpu else 20))
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step or None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._signals.remove()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.see(outputs, trainer.global_step)
        self._wish = max(self._wish, _agreed(trainer, self._own_wish(trainer)))
        if self._wish == STOP_NOT_FINITE:
            self._raise_not_finite(trainer)
        if self._wish != GO_ON and _between_steps(trainer, batch_idx):
            self._save_and_obey(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.state.fn or trainer.state.fn.value != "fit" or not self.monitor:
            return
        value = trainer.strategy.broadcast(self._monitored(trainer))
        if _better(value, self.best, self.mode):
            self.best = value
            trainer.save_checkpoint(self.best_path)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wish = max(self._wish, _agreed(trainer, self._own_wish(trainer)))
        self._save_and_obey(trainer)

    def _own_wish(self, trainer: L.Trainer) -> int:
        self._bad_step = self._losses.first_bad_step()
        if self._bad_step is not None:
            return STOP_NOT_FINITE
        if self._signals.wish != GO_ON:
            return self._signals.wish
        steps_due = self.every_steps and trainer.global_step - (self._saved_step or 0) >= self.every_steps
        time_due = self.every_minutes and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return SAVE if steps_due or (time_due and trainer.is_global_zero) else GO_ON

    def _save_and_obey(self, trainer: L.Trainer) -> None:
        self._bad_step = self._losses.first_bad_step(now=True)
        healthy = self._bad_step is None and all_finite(trainer.lightning_module)
        if _agreed(trainer, GO_ON if healthy else STOP_NOT_FINITE) == STOP_NOT_FINITE:
            self._raise_not_finite(trainer)
        trainer.save_checkpoint(self.last_path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        wish, self._wish = self._wish, GO_ON
        if wish >= STOP_INTERRUPT:
            run = shown_path(self.folder.parent)
            raise Interrupted(
                f"Stopped at step {trainer.global_step} (epoch {trainer.current_epoch}); everything is saved. "
                f"Go on with: greylag train run={run}",
                wish,
            )

    def _raise_not_finite(self, trainer: L.Trainer) -> None:
        step = self._bad_step if self._bad_step is not None else trainer.global_step
        what = "The loss is not finite" if self._bad_step is not None else "The weights are not finite"
        run = shown_path(self.folder.parent)
        rate = trainer.optimizers[0].defaults.get("lr") if trainer.optimizers else None
        advice = f"optim.lr={rate / 2:.3g}" if isinstance(rate, float) else "trainer.gradient_clip_val=0.5"
        if self.last_path.is_file():
            saved = f"step {self._saved_step}" if self._saved_step else "before"
            way_on = f"The last good checkpoint ({saved}) is {shown_path(self.last_path)}"
            way_on += f"; try from it: greylag train run={run} {advice}"
        else:
            way_on = f"There is no checkpoint yet; try again with {advice}"
        raise NotFinite(
            f"{what} at step {step} (epoch {trainer.current_epoch}). {way_on}; or a smaller "
            "trainer.gradient_clip_val, a longer optim.warmup, trainer.precision=32-true."
        )

    def _monitored(self, trainer: L.Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise UserError(
                f"monitor.metric is '{self.monitor}', but validation logs no such metric"
                f"{did_you_mean(str(self.monitor), sorted(metrics))}"
            )
        return float(metrics[self.monitor])


def _agreed(trainer: L.Trainer, wish: int) -> int:
    """The highest wish of all processes, so that all save or stop after the same batch."""
    if trainer.world_size == 1:
        return wish
    wishes = torch.tensor(wish, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(wishes, reduce_op="max"))


def _between_steps(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint after this batch loses nothing: see the module's docstring."""
    done = batch_idx + 1
    last = done >= trainer.num_training_batches
    accumulating = done % trainer.accumulate_grad_batches != 0
    every = trainer.val_check_batch
    validating = bool(every) and math.isfinite(every) and done % int(every) == 0
    return not (last or accumulating or validating)


def _better(value: float, best: float | None, mode: str) -> bool:
    """Ties go to the later one, which was trained longer."""
    if math.isnan(value):
        return False
    return best is None or (value >= best if mode == "max" else value <= best)
