"""What happens to series on the way to the user: spikes, shifts, limits, rounding, flips and gaps."""

from __future__ import annotations

import numpy as np

Floats = np.ndarray


def _size(values: Floats) -> float:
    return float(values.std()) or 1.0


def spikes(rng: np.random.Generator, values: Floats) -> Floats:
    """Single outliers, up or down, in up to 3 % of the steps."""
    hit = rng.random(len(values)) < rng.uniform(0.0, 0.03)
    return values + hit * rng.normal(0.0, rng.uniform(2.0, 8.0) * _size(values), len(values))


def shift(rng: np.random.Generator, values: Floats) -> Floats:
    """The level jumps once, or for a while."""
    n = len(values)
    first, last = np.sort(rng.integers(0, n + 1, 2))
    last = n if rng.random() < 0.6 else last
    moved = values.copy()
    moved[first:last] += rng.normal(0.0, 1.5) * _size(values)
    return moved


def limits(rng: np.random.Generator, values: Floats) -> Floats:
    """A sensor or a stock has an end: clipped below, above or both."""
    low, high = np.quantile(values, (rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)))
    side = rng.random()
    return np.clip(values, low if side < 0.6 else -np.inf, high if side > 0.3 else np.inf)


def rounding(rng: np.random.Generator, values: Floats) -> Floats:
    """Whole multiples of a step, from barely seen to coarse."""
    step = _size(values) * np.exp(rng.uniform(np.log(0.01), np.log(1.0)))
    return np.round(values / step) * step


def wear(rng: np.random.Generator, values: Floats, *, positive: bool) -> Floats:
    """Each of the events above with a small chance; the sign flips where a series need not be positive."""
    chance = rng.random(6)
    if chance[0] < 0.08:
        values = spikes(rng, values)
    if chance[1] < 0.08:
        values = shift(rng, values)
    if chance[2] < 0.03:
        values = limits(rng, values)
    if chance[3] < 0.1:
        values = rounding(rng, values)
    if chance[4] < 0.06:
        values = values[::-1]
    if chance[5] < (0.03 if positive else 0.25):
        values = -values
    return values


def gaps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Which steps are there (n,) bool: single ones missing, or whole stretches."""
    there = np.ones(n, dtype=bool)
    if rng.random() < 0.5:
        return rng.random(n) >= rng.uniform(0.0, 0.2)
    for _ in range(int(rng.integers(1, 4))):
        first = int(rng.integers(n))
        there[first : first + int(rng.geometric(min(1.0, 12.0 / n)))] = False
    return there
