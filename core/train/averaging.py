"""An exponential moving average of the weights (EMA), kept by Lightning's callback.

It is evaluated, exported and resumed: validation swaps it in, checkpoints hold both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from core.errors import UserError


class AveragedWeights(WeightAveraging):
    """EMA with a warm-up: the decay is at most (1 + n) / (10 + n) after n updates (TensorFlow's and timm's rule).

    Without it, short runs would average over their random start: 0.999 remembers a thousand steps.

    Args:
        decay: below 1; 0.999 averages over about the last thousand steps.
    """

    def __init__(self, decay: float) -> None:
        check_decay(decay)
        super().__init__(multi_avg_fn=ema_update(decay))


def check_decay(decay: float | None) -> None:
    """Raise UserError unless it is a decay, or None."""
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"ema is {decay:g}; expected a decay between 0 and 1 such as 0.999, or null for none.")


def ema_update(decay: float) -> Callable[[Any, Any, Any], None]:
    """A ``multi_avg_fn`` of :class:`torch.optim.swa_utils.AveragedModel`; integers are taken over as they are."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            n = float(count)
            torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averages, currents)

    return update
