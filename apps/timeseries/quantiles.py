"""From the head's quantiles to what users ask for: a point, intervals of any level, any quantile; and its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError

POINTS = ("median", "mean")


@dataclass(frozen=True)
class Wanted:
    """Columns of a forecast beside the point: their names, and the quantile of each."""

    names: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()

    @classmethod
    def of(cls, alias: str, level: Sequence[float] | None, quantiles: Sequence[float] | None) -> Wanted:
        """What `level` (in percent) and `quantiles` ask for, named as neuralforecast's core names it.

        "Rimer-lo-80" and "Rimer-hi-80", the widest interval outside; "Rimer_ql0.1".

        Raises:
            UserError: levels outside (0, 100) or quantiles outside (0, 1), repeated ones, or both arguments at once.
        """
        if level is not None and quantiles is not None:
            raise UserError("level and quantiles were both given; one of them was expected.")
        if quantiles is not None:
            found = _checked(quantiles, "quantiles", 1.0)
            return cls(tuple(f"{alias}_ql{q}" for q in quantiles), found)
        levels = sorted(_checked(level or (), "level", 100.0))
        low = [(f"{alias}-lo-{value:g}", (100 - value) / 200) for value in reversed(levels)]
        high = [(f"{alias}-hi-{value:g}", (100 + value) / 200) for value in levels]
        return cls(tuple(name for name, _ in low + high), tuple(round(q, 12) for _, q in low + high))

    def check(self, levels: Sequence[float]) -> None:
        """UserError unless a head with these levels reaches every quantile; it is not stretched beyond its last."""
        if not self.quantiles:
            return
        if not levels:
            raise UserError("This model forecasts points alone; train it with loss='quantile' for level or quantiles.")
        for q in (min(self.quantiles), max(self.quantiles)):
            if not levels[0] <= q <= levels[-1]:
                widest = 100 * (1 - 2 * max(levels[0], 1 - levels[-1]))
                raise UserError(
                    f"The quantile {q:g} was asked for; this model knows those from {levels[0]:g} to {levels[-1]:g}, "
                    f"intervals up to level {widest:g}."
                )

    def outputs(self, alias: str, found: np.ndarray, levels: Sequence[float], point: str) -> dict[str, np.ndarray]:
        """Columns by name, (N,) each.

        Args:
            alias: the name of the point column.
            found: (N, Q) rising quantiles; Q = 1 for a point forecaster.
            levels: of its Q columns; () for a point forecaster.
            point: "median" or "mean".
        """
        columns = {alias: _point(found, levels, point)}
        if self.quantiles:
            between = interpolate(found, levels, self.quantiles)
            columns |= {name: between[:, i] for i, name in enumerate(self.names)}
        return columns


def interpolate(found: np.ndarray, levels: Sequence[float], wanted: Sequence[float]) -> np.ndarray:
    """Quantiles (N, Q) of rising levels -> those wanted (N, W), linearly between the neighbouring levels.

    They never cross, whatever rounding does: a higher quantile is at least as large.
    """
    held, order = np.asarray(levels), np.argsort(wanted, kind="stable")
    sought = np.asarray(wanted, np.float64)[order]
    right = np.searchsorted(held, sought).clip(1, len(held) - 1)
    share = (sought - held[right - 1]) / (held[right] - held[right - 1])
    rising = np.where(share >= 1, found[:, right], found[:, right - 1] * (1 - share) + found[:, right] * share)
    result = np.empty_like(rising)
    result[:, order] = np.maximum.accumulate(rising, axis=1)
    return result


def _point(found: np.ndarray, levels: Sequence[float], point: str) -> np.ndarray:
    """The median, or the mean of the distribution that the quantiles draw: linear between them, flat beyond."""
    if not levels:
        return found[:, 0]
    if point == "median":
        return found[:, list(levels).index(0.5)]
    edges = np.concatenate([[0.0], levels, [1.0]])
    weight = np.diff(edges)
    weight[1:-1] /= 2  # trapezes between levels, whole shares beyond the outer ones
    return found @ (weight[:-1] + weight[1:])


def _checked(values: Sequence[float], name: str, upper: float) -> tuple[float, ...]:
    if isinstance(values, int | float):
        raise UserError(f"{name} is {values!r}; a list of numbers was expected, such as [{values!r}].")
    found = tuple(float(value) for value in values)
    for value in found:
        if not 0 < value < upper:
            raise UserError(f"{name} holds {value:g}; numbers between 0 and {upper:g} were expected.")
    if len(set(found)) < len(found):
        raise UserError(f"{name} is {list(values)}; every number once was expected.")
    return found
