"""Training for the estimator: the same task, windows and optimisers as the command line's, without its run folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor

from apps.timeseries.data import ForecastData
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.panel import Panel
from apps.timeseries.task import ForecastTask
from core.errors import UserError
from core.train.determinism import StepSeeds
from core.train.progress import ProgressLines
from core.train.seeds import derive_seed, kept_random_state, seed_all
from core.train.stops import all_finite
from core.train.trainers import build_trainer

MONITOR = "val/loss"


class Recipe(NamedTuple):
    """How a forecaster is trained; names as the estimator's."""

    max_steps: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    val_check_steps: int
    early_stop_patience_steps: int
    random_seed: int
    loss: str | None
    point: str
    verbose: bool
    accelerator: str
    devices: int
    precision: str
    trainer: Mapping[str, Any] | None
    """Further options of Lightning's Trainer."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Recipe:
        """Those of the estimator's arguments."""
        return cls(**{name: arguments[name] for name in cls._fields})

    @property
    def trainer_options(self) -> dict[str, Any]:
        """All of Lightning's options."""
        return {
            "max_steps": self.max_steps, "max_epochs": -1, "gradient_clip_val": 1.0, "enable_checkpointing": False,
            "accelerator": self.accelerator, "devices": self.devices, "precision": self.precision,
            **(self.trainer or {}),
        }  # fmt: skip


class PanelData(ForecastData):
    """Windows of series that are in memory already.

    Args:
        panel: the series.
        borders: (S,) ends of the training, validation and test part of each.
        facts: what the model's config says of the data.
        options: of :class:`ForecastData`.
    """

    def __init__(
        self, panel: Panel, borders: tuple[Tensor, Tensor, Tensor], facts: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(**options)
        self.given, self.borders, self.known = panel, borders, facts

    def setup(self, stage: str | None = None) -> None:
        """Cut the windows."""
        self.facts = self.known
        self.cut(self.given, self.borders)


class KeepBest(Callback):
    """Keeps the weights that were best in validation, and ends a training that gets no better."""

    def __init__(self, patience: int) -> None:
        self.patience, self.stale = patience, 0
        self.best, self.weights = math.inf, None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = float(trainer.callback_metrics.get(MONITOR, math.inf))
        if value < self.best:
            self.best, self.stale = value, 0
            self.weights = copy.deepcopy(pl_module.model.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
            return
        self.stale += 1
        if 0 < self.patience <= self.stale:
            trainer.should_stop = True


def fit(model: Mapping[str, Any], data: ForecastData, recipe: Recipe, before: Forecaster | None = None) -> Forecaster:
    """A trained forecaster, in evaluation mode.

    What is drawn depends on the recipe's seed alone, and leaves the callers' random numbers as they were.

    Args:
        model: see :func:`apps.timeseries.model.build_model`.
        data: its training part is learned; its validation part, if it has one, chooses among the weights.
        recipe: how.
        before: whose weights it starts from; None: fresh ones.

    Raises:
        UserError: options that make no sense, or weights that are not finite in the end.
    """
    optim = {"name": "adamw", "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "warmup": 0.05}
    with kept_random_state():
        data.setup_once()
        seed_all(derive_seed(recipe.random_seed, "initial weights"))
        loss = recipe.loss or ("quantile" if "quantiles" in model else "mse")
        task = ForecastTask(dict(model), optim, data.describe(), loss=loss, point=recipe.point, pictures=0)
        if before is not None:
            task.model.load_state_dict(before.state_dict())
        best = KeepBest(recipe.early_stop_patience_steps)
        callbacks: list[Callback] = [StepSeeds(recipe.random_seed), best]
        if recipe.verbose:
            callbacks.append(ProgressLines(Console(stderr=True), MONITOR if data.has("val") else None))
        options = recipe.trainer_options | ({"max_steps": 1} if task.idle is not None else {})
        build_trainer(options, callbacks, []).fit(task, datamodule=data)
    if best.weights is not None:
        task.model.load_state_dict(best.weights)
    if not all_finite(task.model):
        raise UserError(
            f"The training ended in weights that are no numbers: learning_rate={recipe.learning_rate:g} is high."
        )
    forecaster = task.model.eval()
    assert isinstance(forecaster, Forecaster)
    return forecaster
