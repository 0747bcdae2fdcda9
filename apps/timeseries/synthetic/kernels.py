"""Gaussian processes from kernels combined by + and x, after KernelSynth (Ansari et al., arXiv 2403.07815, app. A).

Stationary kernels are drawn by circulant embedding (Wood & Chan 1994) in O(n log n): the autocovariance is laid on a
circle of twice the length, its spectrum shapes white noise. Where the embedding is not positive, negative parts of the
spectrum are cut off, so that long-memory kernels are drawn approximately. A linear kernel times k is the exact
t * g(t) with g from k, and a linear kernel alone a random line.
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


def draw_stationary(rng: np.random.Generator, autocovariance: Floats) -> Floats:
    """One path of the zero-mean Gaussian process with this autocovariance.

    Args:
        rng: where numbers come from.
        autocovariance: (n,) at lags 0 .. n-1.

    Returns:
        (n,).
    """
    n = len(autocovariance)
    half = next(length for length in _QUICK if length >= n)
    circle = np.zeros(2 * half)
    circle[:n] = autocovariance
    circle[2 * half - n + 1 :] = autocovariance[:0:-1]
    spectrum = np.maximum(rfft(circle).real, 0.0)
    noise = rng.standard_normal((2, half + 1))
    waves = np.sqrt(spectrum * half) * (noise[0] + 1j * noise[1])
    return irfft(waves, 2 * half)[:n]


def draw_kernel(rng: np.random.Generator, n: int, periods: Sequence[float]) -> Floats:
    """Autocovariance (n,) of one random kernel of the bank; seasonal ones take the given periods."""
    lag = np.arange(n, dtype=np.float64)
    kind = rng.random()
    if periods and kind < 0.45:
        period = periods[int(rng.integers(len(periods)))]
        return periodic(lag, period, np.exp(rng.uniform(np.log(0.3), np.log(3.0))))
    length = n * np.exp(rng.uniform(np.log(0.02), np.log(1.5)))
    if kind < 0.65:
        return rbf(lag, length)
    if kind < 0.8:
        return rational_quadratic(lag, length, np.exp(rng.uniform(np.log(0.1), np.log(10.0))))
    if kind < 0.9:
        return exponential(lag, length)
    if kind < 0.95:
        return white(lag)
    return np.ones(n)


def gaussian_process(rng: np.random.Generator, n: int, periods: Sequence[float]) -> Floats:
    """A path (n,) of one to five kernels, joined left to right by + or x, each with a variance of its own."""
    covariance = draw_kernel(rng, n, periods)
    for _ in range(int(rng.integers(0, 5))):
        other = draw_kernel(rng, n, periods)
        covariance = covariance * other if rng.random() < 0.5 else covariance + rng.exponential() * other
    noise = rng.random()
    if noise < 0.7:
        covariance[0] += covariance[0] * 0.25 * noise**2
    path = draw_stationary(rng, covariance)
    line = rng.random()
    if line < 0.35:
        t = np.linspace(-0.5, 0.5, n) + rng.uniform(-0.5, 0.5)
        scale = np.sqrt(covariance[0])
        path = path * t if line < 0.05 else path + scale * rng.normal(0.0, 3.0) * t
    return path
