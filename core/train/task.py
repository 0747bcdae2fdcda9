"""The Lightning module every app's task derives from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from core.errors import UserError
from core.train import optim as optimisation
from core.train.data import DataModule


class Task(L.LightningModule):
    """Loss, metrics and logging of one app.

    A subclass overrides :meth:`build_model`, Lightning's ``training_step``, ``validation_step`` and ``test_step``
    (metric names "train/loss", "val/top1", "test/top1"), :meth:`pretrained_config`, and may override
    :meth:`write_report`. Own options are plain values (str, int, float, bool, None, lists and dicts of these),
    so that checkpoints load with ``weights_only=True``; all of them are in ``self.hparams``.

    Args:
        model: options of the model.
        optim: see :mod:`core.train.optim`.
        data: what the data module's ``describe()`` said.
    """

    model: nn.Module
    study_options: tuple[str, ...] = ()
    """The options of :meth:`study`."""

    def __init__(self, model: dict[str, Any], optim: dict[str, Any], data: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()  # those of subclasses too: Lightning walks up the constructors
        _require_plain(dict(self.hparams), type(self).__name__)
        self._fresh_groups: list[dict[str, Any]] = []
        self._optim_changed = False
        self.model = self.build_model()

    def build_model(self) -> nn.Module:
        """The model, from ``self.hparams["model"]`` and the facts in ``self.hparams["data"]``."""
        raise NotImplementedError(f"{type(self).__name__} must override build_model().")

    def pretrained_config(self) -> dict[str, Any]:
        """Everything the app's pipeline needs beside the weights; becomes config.json. Plain values."""
        return {"model": dict(self.hparams["model"]), "data": dict(self.hparams["data"])}

    def write_report(
        self, folder: Path, data: DataModule, metrics: dict[str, float], history: list[dict[str, Any]]
    ) -> Path | None:
        """Write pictures and a page about this run; called after the final test, with the final weights loaded.

        Args:
            folder: where to (exists).
            data: set up.
            metrics: the final ones by name.
            history: one dict per epoch: "epoch", "step" and metrics by name.

        Returns:
            The page, or None if there is none.
        """
        return None

    def study(
        self, data: DataModule, splits: Sequence[str], options: dict[str, Any], console: Console
    ) -> dict[str, Any]:
        """What ``greylag evaluate`` tells beyond the metrics; called on the first process, with the weights loaded.

        Args:
            data: set up; its loaders give all items, not one process's share.
            splits: of "val" and "test"; those that have items.
            options: the command's words ``eval.key=value``; keys of :attr:`study_options`.
            console: where to print tables.

        Returns:
            Plain values, written to the run's evaluation.json; empty: nothing is written.

        Raises:
            UserError: a value that makes no sense.
        """
        return {}

    def configure_optimizers(self) -> Any:
        """timm's optimiser of that name on the core's parameter groups; warm-up and decay by step."""
        options = dict(self.hparams["optim"])
        optimizer = optimisation.build_optimizer(self.model, options)
        total = self.trainer.estimated_stepping_batches if self._trainer is not None else math.inf
        schedule = optimisation.build_schedule(optimizer, options, total)
        self._fresh_groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whether ``optim`` differs from the checkpoint's: the new values are to count, see below."""
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        self._optim_changed = bool(saved) and saved.get("optim") != self.hparams["optim"]

    def on_train_start(self) -> None:
        """A resumed run keeps the optimiser's moments, but takes learning rate and decay from its config."""
        if self._optim_changed:
            optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
            assert isinstance(optimizer, Optimizer)
            assert isinstance(schedule, LambdaLR)
            schedule.base_lrs = [group["initial_lr"] for group in self._fresh_groups]
            for group, fresh, shape in zip(
                optimizer.param_groups, self._fresh_groups, schedule.lr_lambdas, strict=True
            ):
                group.update(fresh, lr=fresh["initial_lr"] * shape(schedule.last_epoch))


def _require_plain(value: Any, where: str) -> None:
    """Raise unless a value would survive ``torch.load(weights_only=True)``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_plain(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_plain(inner, where)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise UserError(
            f"{where} is a {type(value).__name__}; tasks take plain values only (numbers, strings, lists, dicts), "
            "because checkpoints are read without running code."
        )
