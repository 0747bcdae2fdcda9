"""Lightning's Trainer as this house sets it up."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from core.errors import UserError, did_you_mean
from core.train.checkpoint_io import AtomicCheckpointIO

OURS = ("callbacks", "logger", "plugins", "default_root_dir", "enable_progress_bar", "enable_model_summary")
"""Arguments of the Trainer that the harness gives itself."""

_SHARDED = ("fsdp", "deepspeed")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Raise UserError for a key of ``trainer`` that Lightning's Trainer does not take, or that is not for users."""
    known = list(inspect.signature(L.Trainer.__init__).parameters)[1:]
    for key in options:
        if key in OURS:
            raise UserError(f"'trainer.{key}' is set by greylag itself; see the groups callbacks and logger.")
        if key not in known:
            raise UserError(f"There is no option 'trainer.{key}'{did_you_mean(key, known)}")


def is_sharded(options: Mapping[str, Any]) -> bool:
    """Whether the strategy shares one model's weights out among processes."""
    return str(options.get("strategy", "")).startswith(_SHARDED)


def build_trainer(options: Mapping[str, Any], callbacks: list[Callback], loggers: list[Any]) -> L.Trainer:
    """A Trainer that is quiet, saves atomically and leaves sampling to :class:`core.train.data.DataModule`.

    Raises:
        UserError: options that do not fit together or this machine (no GPU, ...).
    """
    check_trainer(options)
    quieten()
    chosen = {"num_sanity_val_steps": 0, "use_distributed_sampler": False, **options}
    if not is_sharded(options):
        chosen["plugins"] = [AtomicCheckpointIO()]
    # Deterministic algorithms also fill fresh memory; that guards against bugs that tests look for elsewhere.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return L.Trainer(
            callbacks=callbacks,
            logger=loggers or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **chosen,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        hint = "" if torch.cuda.is_available() or "cpu" in str(options.get("accelerator")) else " (trainer=cpu works)"
        raise UserError(f"This trainer cannot be set up: {' '.join(str(error).split())}{hint}") from error


def quieten() -> None:
    """Lightning's hints are for people who write loops; ours says what matters."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", module=r"lightning\.")
