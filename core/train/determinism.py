"""The callback that makes training random numbers a function of (seed, epoch, batch, rank)."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from core.train.seeds import derive_seed, seed_all


class StepSeeds(Callback):
    """Seeds torch, NumPy and Python before every training batch and every validation.

    Dropout, Mixup, noise: a resumed run draws what an unbroken one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_all(derive_seed(self.seed, "batch", trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed_all(derive_seed(self.seed, "validation", trainer.current_epoch, trainer.global_rank))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed_all(derive_seed(self.seed, "test", trainer.global_rank))
