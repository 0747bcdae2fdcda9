"""Checkpoint files: whole or not there, and read without running code."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from core.atomic import replacing
from core.errors import UserError
from core.train.runs import shown_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """A full disk or a kill leaves the former file as it was, see :mod:`core.atomic`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises UserError where it cannot be written."""
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as new:
                torch.save(checkpoint, new)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns some OSErrors into RuntimeErrors
            raise UserError(_why(target, error)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Always with ``weights_only=True``: a checkpoint holds tensors and plain values."""
        return read_checkpoint(Path(path), map_location=map_location or "cpu")


def read_checkpoint(path: Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content. Raises UserError where the file is missing or broken."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {shown_path(path)}.")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The checkpoint {shown_path(path)} cannot be read: {first}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written."""
    for path in folder.glob(".*.ckpt.*.new"):
        with suppress(OSError):
            path.unlink()


def _why(target: Path, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    advice = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EACCES: "make the folder writable",
        errno.EROFS: "make the file system writable",
    }.get(number or 0, "see to the disk")
    kept = "the one before it is still whole" if target.exists() else "there is none before it"
    run = shown_path(target.parent.parent)
    return (
        f"The checkpoint {shown_path(target)} could not be written ({reason}); {kept}. "
        f"Then {advice} and go on with: greylag train run={run}"
    )
