"""Gaussian processes from kernels combined by + and x, after KernelSynth (Ansari et al., arXiv 2403.07815, app. A).

Stationary kernels are drawn by circulant embedding (Wood & Chan 1994) in O(n log n): the autocovariance is laid on a
circle, whose length is a multiple of the season's, and its spectrum shapes white noise. Where that is not positive, its
negative parts are cut off, so that kernels with a memory beyond the circle are drawn approximately. A linear kernel
times k is the exact t * g(t) with g from k, and a linear kernel alone a random line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.fft import irfft, rfft

Floats = np.ndarray
_QUICK = sorted(part * 2**power for part in (1, 3, 5) for power in range(18))  # lengths that an FFT likes


def rbf(lag: Floats, length: float) -> Floats:
    """Squared exponential."""
    return np.exp(-0.5 * (lag / length) ** 2)


def rational_quadratic(lag: Floats, length: float, alpha: float) -> Floats:
    """A mixture of RBFs of many lengths."""
    return (1 + (lag / length) ** 2 / (2 * alpha)) ** -alpha


def periodic(lag: Floats, period: float, length: float) -> Floats:
    """Exp-sine-squared; a small `length` gives sharp shapes."""
    return np.exp(-2 * np.sin(np.pi / period * lag) ** 2 / length**2)


def exponential(lag: Floats, length: float) -> Floats:
    """Ornstein-Uhlenbeck: rough, mean-reverting."""
    return np.exp(-lag / length)


def white(lag: Floats) -> Floats:
    """Independent noise."""
    return (lag == 0).astype(np.float64)


def circle(n: int, periods: Sequence[float]) -> int:
    """Half the length of a circle for paths of n steps, with room to forget; seasons of whole steps close on it."""
    least = n + n // 2
    for period in sorted(periods, reverse=True):
        if period <= n:
            return int(np.ceil(least / period) * period)
    return next(length for length in _QUICK if length >= least)


def draw_stationary(rng: np.random.Generator, autocovariance: Floats, n: int) -> Floats:
    """One path of the zero-mean Gaussian process with this autocovariance.

    Args:
        rng: where numbers come from.
        autocovariance: (half + 1,) at lags 0 .. half; half as of :func:`circle`.
        n: steps, at most half + 1.

    Returns:
        (n,).
    """
    half = len(autocovariance) - 1
    assert n <= half + 1
    spectrum = rfft(np.concatenate((autocovariance, autocovariance[-2:0:-1]))).real
    positive = np.maximum(spectrum, 0.0)
    power = 2 * positive.sum() - positive[0] - positive[-1]
    positive *= 2 * half * autocovariance[0] / power  # what was cut off must not cost variance
    noise = rng.standard_normal((2, half + 1))
    waves = np.sqrt(positive * half) * (noise[0] + 1j * noise[1])
    waves[[0, -1]] *= np.sqrt(2.0)  # their imaginary parts count for nothing
    return irfft(waves, 2 * half)[:n]


def draw_kernel(rng: np.random.Generator, lag: Floats, n: int, periods: Sequence[float]) -> Floats:
    """Autocovariance at the given lags of one random kernel of the bank, for paths of n steps and these seasons."""
    kind = rng.random()
    if periods and kind < 0.45:
        period = periods[int(rng.integers(len(periods)))]
        return periodic(lag, period, np.exp(rng.uniform(np.log(0.3), np.log(3.0))))
    length = n * np.exp(rng.uniform(np.log(0.02), np.log(0.7)))
    if kind < 0.65:
        return rbf(lag, length)
    if kind < 0.8:
        return rational_quadratic(lag, length, np.exp(rng.uniform(np.log(0.1), np.log(10.0))))
    if kind < 0.9:
        return exponential(lag, length)
    if kind < 0.95:
        return white(lag)
    return np.ones_like(lag)


def gaussian_process(rng: np.random.Generator, n: int, periods: Sequence[float]) -> Floats:
    """A path (n,) of one to five kernels, joined left to right by + or x, each with a variance of its own."""
    lag = np.arange(circle(n, periods) + 1.0)
    covariance = draw_kernel(rng, lag, n, periods)
    for _ in range(int(rng.integers(0, 5))):
        other = draw_kernel(rng, lag, n, periods)
        covariance = covariance * other if rng.random() < 0.5 else covariance + rng.exponential() * other
    noise = rng.random()
    if noise < 0.7:
        covariance[0] += covariance[0] * 0.25 * noise**2
    path = draw_stationary(rng, covariance, n)
    line = rng.random()
    if line < 0.35:
        t = np.linspace(-0.5, 0.5, n) + rng.uniform(-0.5, 0.5)
        scale = np.sqrt(covariance[0])
        path = path * t if line < 0.05 else path + scale * rng.normal(0.0, 3.0) * t
    return path
