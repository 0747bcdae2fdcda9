"""How a run ends before its time: a signal, or a loss that is no number. Always between two batches, and together."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError

GO_ON, SAVE, STOP_INTERRUPT, STOP_TERMINATE, STOP_NOT_FINITE = range(5)
"""What a process wants after a batch; the highest wish of all processes is what all of them do."""

_WISH_OF = {signal.SIGINT: STOP_INTERRUPT, signal.SIGTERM: STOP_TERMINATE}
_SIGNAL_OF = {wish: number for number, wish in _WISH_OF.items()}


class RunStopped(UserError):
    """The run ended early; ``code`` is the exit status, the text says how to go on."""

    code = 1


class Interrupted(RunStopped):
    """Stopped by a signal, after a checkpoint."""

    def __init__(self, message: str, wish: int) -> None:
        super().__init__(message)
        self.code = 128 + _SIGNAL_OF[wish]


class NotFinite(RunStopped):
    """The loss or a weight became infinite or NaN."""


class StopSignals:
    """Turns the first ctrl-C or SIGTERM into a wish to stop after the batch; a second one stops at once."""

    def __init__(self) -> None:
        self.wish = GO_ON
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Take over from Lightning's handlers, which stop without a checkpoint."""
        if threading.current_thread() is threading.main_thread() and not self._former:
            self._former = {number: signal.signal(number, self._note) for number in _WISH_OF}

    def remove(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wish != GO_ON:
            raise KeyboardInterrupt
        self.wish = _WISH_OF[signal.Signals(number)]


class LossWatch:
    """Finds the first step whose loss was not finite; on a GPU without waiting for it at each step."""

    def __init__(self, check_every: int) -> None:
        self.check_every = check_every
        self._seen = 0
        self._first: Tensor | None = None

    def see(self, outputs: Any, step: int) -> None:
        """Note the loss of optimiser step ``step`` (what ``training_step`` returned)."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._first is None:
            self._first = torch.full((), -1, dtype=torch.long, device=loss.device)
        bad = ~torch.isfinite(loss.detach()).all()
        self._first = torch.where(bad & (self._first < 0), step, self._first)
        self._seen += 1

    def first_bad_step(self, *, now: bool = False) -> int | None:
        """The step, or None; looked up every ``check_every`` batches, or ``now``."""
        if self._first is None or (self._seen % self.check_every and not now):
            return None
        step = int(self._first)
        return step if step >= 0 else None


def all_finite(module: torch.nn.Module) -> bool:
    """Whether every floating-point weight is a number."""
    return all(bool(torch.isfinite(p).all()) for p in module.parameters() if p.is_floating_point())
