"""How often series are observed: their usual season lengths and how much history comes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Rhythm:
    """A frequency of observation.

    Attributes:
        name: for people and for configurations.
        periods: season lengths in steps, most important first.
        least, most: steps of history usual for it.
        weight: how often it is drawn among those that fit.
    """

    name: str
    periods: tuple[int, ...]
    least: int
    most: int
    weight: float


RHYTHMS = (
    Rhythm("yearly", (), 7, 60, 1.5),
    Rhythm("quarterly", (4,), 12, 120, 1.5),
    Rhythm("monthly", (12,), 20, 400, 2.0),
    Rhythm("weekly", (52,), 40, 2600, 1.0),
    Rhythm("business daily", (5, 261), 60, 2600, 0.3),
    Rhythm("daily", (7, 365), 40, 4000, 0.7),
    Rhythm("hourly", (24, 168), 72, 20000, 1.5),
    Rhythm("half-hourly", (48, 336), 192, 20000, 1.0),
    Rhythm("quarter-hourly", (96, 672), 288, 20000, 0.4),
    Rhythm("ten-minutely", (144, 1008), 400, 20000, 0.1),
    Rhythm("five-minutely", (288, 2016), 600, 20000, 0.2),
)
IRREGULAR = Rhythm("irregular", (), 20, 20000, 0.5)


def draw_rhythm(rng: np.random.Generator, context: int, names: Sequence[str] | None = None) -> Rhythm:
    """A rhythm whose usual history fits a context: at least its shortest, and not nearly always far shorter.

    ``IRREGULAR`` gets a season length of its own at each draw, or none.

    Args:
        rng: where numbers come from.
        context: steps of history a model will see.
        names: only these; None: all. Those that do not fit the context are used if no other is named.
    """
    fitting, bounds = _fitting(context, None if names is None else tuple(names))
    rhythm = fitting[int(bounds.searchsorted(rng.random(), side="right"))]
    if rhythm is not IRREGULAR:
        return rhythm
    longest = max(3, context // 2)
    periods = () if rng.random() < 0.4 else (int(np.exp(rng.uniform(np.log(2.0), np.log(longest)))),)
    return Rhythm(rhythm.name, periods, rhythm.least, rhythm.most, rhythm.weight)


@lru_cache
def _fitting(context: int, names: tuple[str, ...] | None) -> tuple[tuple[Rhythm, ...], np.ndarray]:
    """Rhythms that fit a context, and the upper bounds of their shares of [0, 1)."""
    named = tuple(rhythm for rhythm in (*RHYTHMS, IRREGULAR) if names is None or rhythm.name in names)
    fitting = tuple(one for one in named if one.least <= context // 2 and one.most >= context // 3) or named
    bounds = np.cumsum([rhythm.weight for rhythm in fitting])
    return fitting, bounds / bounds[-1]


def draw_history(rng: np.random.Generator, rhythm: Rhythm, context: int) -> int:
    """Steps of history, at most `context`: all of it half of the time where that is usual, else log-uniform."""
    most = min(rhythm.most, context)
    least = min(rhythm.least, most)
    if rhythm.most > context and rng.random() < 0.5:
        return most
    return int(np.exp(rng.uniform(np.log(least), np.log(most + 1))))
