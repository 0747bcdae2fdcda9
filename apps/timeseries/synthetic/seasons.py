"""Seasons: what returns after a period, smooth or sharp, steady or changing; and days within weeks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.timeseries.synthetic.trends import unit

Floats = np.ndarray


def draw_profile(rng: np.random.Generator, period: int) -> Floats:
    """One cycle (period,), centred and of unit size: waves, a jagged profile, a block, peaks or a saw."""
    kind = rng.random()
    if period >= 8 and kind < 0.45:
        return unit(_waves(rng, period))
    if kind < 0.7:
        return unit(_jagged(rng, period))
    phase = np.arange(period) / period
    if kind < 0.8:  # high for a part of the cycle
        share = max(rng.uniform(0.1, 0.9), 1.01 / period)
        return unit((phase < share).astype(np.float64) + 0.1 * rng.standard_normal(period))
    if kind < 0.95:  # one to four peaks
        peaks = rng.random(int(rng.integers(1, 5)))
        width = max(rng.uniform(0.01, 0.15), 0.6 / period)
        away = np.abs((phase[:, None] - peaks + 0.5) % 1.0 - 0.5)
        return unit(np.exp(-0.5 * (away / width) ** 2) @ rng.gamma(2.0, size=len(peaks)))
    return unit(phase * rng.choice((-1.0, 1.0)))


def _waves(rng: np.random.Generator, period: int) -> Floats:
    count = int(rng.integers(1, min(period // 2, 8) + 1))
    order = np.arange(1, count + 1)
    size = rng.standard_normal((2, count)) * order ** -rng.uniform(0.3, 1.5)
    angle = 2 * np.pi / period * np.arange(period)[:, None] * order
    return np.cos(angle) @ size[0] + np.sin(angle) @ size[1]


def _jagged(rng: np.random.Generator, period: int) -> Floats:
    """Independent steps, smoothed or not; heavy tails now and then."""
    steps = rng.standard_normal(period)
    if rng.random() < 0.3:
        steps = np.sign(steps) * np.abs(steps) ** 1.7
    if period >= 8 and rng.random() < 0.5:
        steps = steps + np.roll(steps, 1) + np.roll(steps, -1)
    return steps


def season(rng: np.random.Generator, n: int, period: int) -> Floats:
    """A season (n,) of about unit size; steady, or with size or shape that change slowly."""
    cycles = n // period + 2
    profile = draw_profile(rng, period)
    change = rng.random()
    if change < 0.55:
        body = np.tile(profile, cycles)
    elif change < 0.8:  # another profile drifts in
        speed = np.exp(rng.uniform(np.log(0.02), np.log(0.4)))
        walk = np.cumsum(rng.standard_normal((cycles, period)) * speed, axis=0)
        body = (profile + walk).ravel()
        body = body / np.sqrt(1 + speed**2 * cycles)
    else:  # swells and fades
        swell = np.exp(np.linspace(0.0, rng.normal(0.0, 0.7), cycles) + np.cumsum(rng.normal(0.0, 0.1, cycles)))
        body = (profile * np.clip(swell, 0.05, 20.0)[:, None]).ravel()
        body = body / body.std() if body.std() > 1e-12 else body
    first = int(rng.integers(period))
    return body[first : first + n]


def week_of_days(rng: np.random.Generator, n: int, day: int, days: int = 7) -> Floats:
    """A day's profile (n,) that knows working days from others, as demand, traffic and calls show it.

    Args:
        rng: where numbers come from.
        n: steps.
        day: steps of a day.
        days: days of a week.
    """
    working = draw_profile(rng, day)
    rest = (1 - (mix := rng.uniform(0.0, 1.0))) * working + mix * draw_profile(rng, day)
    off = 2 if rng.random() < 0.8 else int(rng.integers(1, 4))
    height = rng.normal(0.0, 0.12, days)
    height[days - off :] += rng.normal(-0.5, 0.5)
    size = np.exp(rng.normal(0.0, 0.05, days))
    size[days - off :] *= np.exp(rng.normal(-0.2, 0.3))
    week = np.concatenate([working * size[d] + height[d] for d in range(days - off)]
                          + [rest * size[d] + height[d] for d in range(days - off, days)])  # fmt: skip
    first = int(rng.integers(days * day))
    return unit(np.tile(week, n // len(week) + 2)[first : first + n])


def draw_seasons(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """All seasons of a series (n,), of about unit size: each period's own, or days within weeks."""
    if len(periods) == 2 and periods[1] == 7 * periods[0] and rng.random() < 0.7:
        return week_of_days(rng, n, periods[0])
    total = season(rng, n, periods[0])
    for period in periods[1:]:
        if period < 2 * n and rng.random() < 0.6:
            total = total + rng.uniform(0.1, 1.2) * season(rng, n, period)
    return total
