"""Where series are cut by time into training, validation and test."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import UserError

Size = int | float | None
"""Steps, a share of the series below 1, or None for one horizon."""


def split_ends(lengths: Tensor, horizon: int, val_size: Size, test_size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Where the training, validation and test part of each series end, (S,) int64 each.

    A series too short for these parts and one horizon of training is for training alone.

    Raises:
        UserError: a size that makes no sense, or no series is long enough.
    """
    val = _steps("data.val_size", val_size, lengths, horizon)
    test = _steps("data.test_size", test_size, lengths, horizon)
    rest = lengths - val - test
    long_enough = (rest >= horizon) & ((val >= horizon) | (val == 0)) & ((test >= horizon) | (test == 0))
    if bool((val + test > 0).any()) and not bool(long_enough.any()):
        raise UserError(
            f"No series is long enough for {horizon} steps each of training, validation and test: the longest has "
            f"{int(lengths.max())}. Take a shorter data.horizon, or data.val_size=0 data.test_size=0."
        )
    return (
        torch.where(long_enough, rest, lengths),
        torch.where(long_enough, rest + val, lengths),
        lengths.clone(),
    )


def _steps(name: str, size: Size, lengths: Tensor, horizon: int) -> Tensor:
    if size is None:
        return torch.full_like(lengths, horizon)
    if isinstance(size, bool) or not isinstance(size, int | float) or size < 0 or (size >= 1 and size != int(size)):
        raise UserError(f"{name} is {size!r}; steps (a whole number), a share below 1, 0 or null was expected.")
    if 0 < size < horizon and size >= 1:
        raise UserError(f"{name} is {size:g}, less than one horizon of {horizon} steps.")
    return torch.full_like(lengths, int(size)) if size == 0 or size >= 1 else (lengths * float(size)).long()
