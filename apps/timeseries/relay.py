"""How a series is followed for ever on a bounded history: streams take over from one another, like runners of a relay.

A recurrent forecaster reads any length, but forecasts best from lengths that it was trained on. So a further stream
begins every `stride` steps of a series, and the oldest one that is no longer than the training's windows forecasts.
Where streams begin depends on the series alone: in how many pieces its steps came changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_STREAMS = 4


class Relay(NamedTuple):
    """Which streams of a series there are; 0 strides: one, from the first step on."""

    stride: int = 0
    """Steps between the beginnings of streams."""
    kept: int = 0
    """Whole strides that the oldest stream has behind it."""

    @classmethod
    def of(cls, context: int | None, patch_len: int) -> Relay:
        """Streams of up to `context` steps; None: of any length."""
        if not context:
            return cls()
        stride = -(-context // (_STREAMS * patch_len)) * patch_len
        return cls(stride, max(1, context // stride - 1))

    def serving(self, steps: np.ndarray) -> np.ndarray:
        """Where the stream begins that forecasts after `steps` (B,) of a series."""
        if not self.stride:
            return np.zeros_like(steps)
        return (steps // self.stride - self.kept).clip(0) * self.stride

    def begins(self, steps: int, seen: int = 0) -> list[int]:
        """Where the streams begin that are there after `steps`, and were not after `seen`."""
        last = self.serving(np.array([steps])).item()
        if not self.stride:
            return [] if seen else [0]
        wanted = range(last, max(steps, 1), self.stride)
        return [begin for begin in wanted if not seen or begin >= seen]


ONE_STREAM = Relay()
