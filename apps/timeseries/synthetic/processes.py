"""Stochastic processes as sample paths: exponential smoothing, ARIMA, walks, regimes, intermittent demand.

Linear recurrences run in scipy's `lfilter` or as cumulative sums; no loop over time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from apps.timeseries.synthetic.seasons import draw_profile, draw_seasons, season
from apps.timeseries.synthetic.trends import draw_trend, unit

Floats = np.ndarray
EXPONENT = 6.0  # of the natural exponential, at most: a series spans five orders of magnitude


def recur(forward: ArrayLike, back: ArrayLike, steps: Floats) -> Floats:
    """The linear recurrence y_t = sum_i forward_i x_{t-i} - sum_{i>0} back_i y_{t-i}, from rest."""
    return np.asarray(lfilter(np.asarray(forward), np.asarray(back), steps))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def noise(rng: np.random.Generator, n: int) -> Floats:
    """Noise (n,) of unit size: normal or heavy-tailed, white or autoregressive."""
    kind = rng.random()
    steps = rng.standard_normal(n) if kind < 0.8 else np.clip(rng.standard_t(rng.uniform(2.5, 8.0), n), -12, 12)
    if rng.random() < 0.4:
        memory = 1 - _log_uniform(rng, 0.01, 1.0)
        steps = recur([np.sqrt(1 - memory**2)], [1.0, -memory], steps)
    return steps


def structural(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """Trend, seasons and noise (n,), added or multiplied, each with a weight of its own."""
    trend = draw_trend(rng, n) * _log_uniform(rng, 0.15, 3.0)
    if rng.random() < 0.25:
        trend = trend + draw_trend(rng, n) * _log_uniform(rng, 0.05, 1.0)
    seasons = np.zeros(n)
    if periods and rng.random() < 0.9:
        seasons = draw_seasons(rng, n, periods) * _log_uniform(rng, 0.1, 4.0)
    errors = noise(rng, n) * _log_uniform(rng, 0.02, 1.2)
    if rng.random() < 0.15:  # loud and quiet times
        errors = errors * np.exp(0.7 * draw_trend(rng, n))
    if rng.random() < 0.55:
        return _exponential(rng, trend + seasons + errors)
    if rng.random() < 0.4:  # a season that grows with the level, noise that does not
        level = trend - trend.min() + rng.uniform(0.2, 2.0)
        return level * (1 + 0.5 * np.tanh(seasons)) + errors
    return trend + seasons + errors


def _exponential(rng: np.random.Generator, path: Floats) -> Floats:
    """exp of a path scaled to a coefficient of variation as positive series have it."""
    size = _log_uniform(rng, 0.03, 0.8) / max(float(path.std()), 1e-6)
    return np.exp(np.clip(size * (path - path.mean()), -EXPONENT, EXPONENT))


def smoothing(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """ETS in its state-space form (Hyndman et al. 2008): one source of error moves level, slope and season.

    Additive, or the same of the logarithm.
    """
    errors = np.append(0.0, rng.standard_normal(n - 1))
    shocks = np.append(errors[1:], 0.0)  # what moved the state after step t
    alpha = rng.beta(1.2, 1.2)
    level = np.cumsum(np.append(0.0, alpha * errors[1:]))
    if rng.random() < 0.65:
        damping = 1.0 if rng.random() < 0.4 else rng.uniform(0.8, 0.995)
        beta = alpha * rng.beta(1.0, 6.0)
        start = rng.normal(0.0, 0.5) if rng.random() < 0.8 else 0.0
        slope = recur([damping], [1.0, -damping], np.append(start, beta * shocks[:-1]))
        level = level + np.cumsum(slope)
    path = np.append(0.0, level[:-1]) + errors
    if periods and rng.random() < 0.85:
        path = path + _moving_season(rng, errors, periods[0], (1 - alpha) * rng.beta(1.0, 4.0))
    return _exponential(rng, path) if rng.random() < 0.6 else path


def _moving_season(rng: np.random.Generator, errors: Floats, period: int, gamma: float) -> Floats:
    """s_t = s_{t - period} + gamma e_{t - period}, as one cumulative sum for each place in the cycle."""
    cycles = -(-len(errors) // period)
    table = np.zeros((cycles + 1, period))
    table[0] = draw_profile(rng, period) * _log_uniform(rng, 0.5, 8.0)
    table[1:].ravel()[: len(errors)] = gamma * errors
    return np.cumsum(table, axis=0)[:-1].ravel()[: len(errors)]


def _polynomial(rng: np.random.Generator, order: int) -> Floats:
    """Coefficients (order + 1,) of a stationary AR (or invertible MA) polynomial, by partial autocorrelations."""
    coefficients = np.zeros(0)
    for partial in rng.uniform(-0.3, 0.95, 1).tolist() + rng.uniform(-0.6, 0.6, max(order - 1, 0)).tolist():
        coefficients = np.append(coefficients - partial * coefficients[::-1], partial)
    return np.append(1.0, -coefficients[:order])


def _spread_out(polynomial: Floats, period: int) -> Floats:
    wide = np.zeros((len(polynomial) - 1) * period + 1)
    wide[::period] = polynomial
    return wide


def arima(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """A path (n,) of a seasonal ARIMA(p, d, q)(P, D, Q), p, q <= 3, drawn after a start that is thrown away."""
    burn = 100
    errors = rng.standard_normal(n + burn)
    ar, ma = _polynomial(rng, int(rng.integers(0, 4))), _polynomial(rng, int(rng.integers(0, 4)))
    if periods and periods[0] <= 60 and rng.random() < 0.6:
        seasonal = np.array([1.0, -rng.uniform(0.3, 0.98)])
        ar = np.convolve(ar, _spread_out(seasonal, periods[0]))
        if rng.random() < 0.5:
            ma = np.convolve(ma, _spread_out(np.array([1.0, -rng.uniform(0.1, 0.8)]), periods[0]))
    path = recur(ma, ar, errors)[burn:]
    if periods and rng.random() < 0.4:
        path = unit(path) + season(rng, n, periods[0]) * _log_uniform(rng, 0.2, 3.0)
    if rng.random() < 0.5:
        path = np.cumsum(unit(path) + (rng.normal(0.0, 0.3) if rng.random() < 0.5 else 0.0))
    return _exponential(rng, path) if rng.random() < 0.3 else path


def walk(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """A random walk with drift: normal or heavy-tailed, with constant or clustered volatility, plain or geometric."""
    steps = rng.standard_normal(n) if rng.random() < 0.6 else np.clip(rng.standard_t(3.0, n), -15, 15)
    if rng.random() < 0.3:
        memory = rng.uniform(0.8, 0.99)
        calm = recur([np.sqrt(1 - memory**2)], [1.0, -memory], rng.standard_normal(n))
        steps = steps * np.exp(0.6 * calm)
    if rng.random() < 0.6:
        steps = steps + rng.normal(0.0, 0.35)
    path = np.cumsum(steps)
    if rng.random() < 0.5:
        path = path + rng.standard_normal(n) * _log_uniform(rng, 0.05, 2.0)
    if periods and rng.random() < 0.35:
        path = path + season(rng, n, periods[0]) * _log_uniform(rng, 0.3, 5.0)
    return _exponential(rng, path) if rng.random() < 0.5 else path


def regimes(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """Level, volatility and memory change at once, at random times, among two to four states that come back."""
    states = int(rng.integers(2, 5))
    stay = max(4.0, n * _log_uniform(rng, 0.02, 0.5))
    turns = np.cumsum(rng.random(n) < 1 / stay)
    order = rng.integers(states, size=int(turns[-1]) + 1)
    state = order[turns]
    levels, sizes = rng.normal(0.0, 1.5, states), np.exp(rng.normal(-1.5, 0.8, states))
    path = levels[state] + sizes[state] * noise(rng, n)
    if rng.random() < 0.3:  # moves to the new level instead of jumping
        memory = rng.uniform(0.5, 0.98)
        path = path[0] + recur([1 - memory], [1.0, -memory], path - path[0])
    if periods and rng.random() < 0.6:
        scale = sizes[state] * 3 if rng.random() < 0.3 else 1.0
        path = path + scale * draw_seasons(rng, n, periods) * _log_uniform(rng, 0.2, 2.0)
    return path


def intermittent(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """Demand that is mostly nothing: occasions by chance, sizes of their own; whole numbers, never negative."""
    chance = np.full(n, _log_uniform(rng, 0.03, 0.7))
    if rng.random() < 0.4:
        chance = chance * np.exp(0.5 * draw_trend(rng, n))
    if periods and rng.random() < 0.5:
        chance = chance * np.exp(0.8 * season(rng, n, periods[0]))
    happens = rng.random(n) < chance
    mean = _log_uniform(rng, 1.0, 50.0)
    shape = _log_uniform(rng, 0.5, 10.0)
    return happens * np.ceil(rng.gamma(shape, mean / shape, n))


def counts(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """Poisson or over-dispersed counts around a level with trend and seasons."""
    rate = _log_uniform(rng, 0.5, 200.0) * _exponential(rng, structural(rng, n, periods))
    rate = np.minimum(rate, 1e6)
    if rng.random() < 0.5:
        shape = _log_uniform(rng, 1.0, 50.0)
        rate = rate * rng.gamma(shape, 1 / shape, n)
    return rng.poisson(rate).astype(np.float64)


def demand(rng: np.random.Generator, n: int, periods: Sequence[int]) -> Floats:
    """Load as of a grid: days within weeks, weather with memory of days, a slow year, little noise."""
    if len(periods) < 2:
        return structural(rng, n, periods)
    day = periods[0]
    path = draw_seasons(rng, n, periods)
    memory = 1 - 1 / (day * _log_uniform(rng, 0.3, 8.0))
    weather = recur([np.sqrt(1 - memory**2)], [1.0, -memory], rng.standard_normal(n + 4 * day))[4 * day :]
    if rng.random() < 0.7:  # smooth, as temperature
        soft = rng.uniform(0.5, 0.95)
        weather = recur([1 - soft], [1.0, -soft], weather)
    weather = weather * _log_uniform(rng, 0.1, 1.5)
    if rng.random() < 0.5:  # weather moves the day's amplitude as well
        path = path * np.exp(rng.normal(0.0, 0.3) * weather)
    year = np.sin(2 * np.pi * (np.arange(n) / (365 * day) + rng.random())) * rng.uniform(0.0, 1.5)
    path = path + weather + year + noise(rng, n) * _log_uniform(rng, 0.01, 0.4)
    return _exponential(rng, path) if rng.random() < 0.5 else path
