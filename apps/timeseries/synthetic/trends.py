"""Trends: where a series' level goes, from still to broken, each of about unit size over its length."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

Floats = np.ndarray


def unit(path: Floats) -> Floats:
    """Centred, with standard deviation 1 (0 where it was constant)."""
    path = path - path.mean()
    size = np.sqrt(path @ path / len(path))
    return path / size if size > 1e-12 else path


def linear(rng: np.random.Generator, n: int) -> Floats:
    """A straight line."""
    return unit(np.arange(n) * rng.choice((-1.0, 1.0)))


def damped(rng: np.random.Generator, n: int) -> Floats:
    """A slope that dies away."""
    rate = np.exp(rng.uniform(np.log(0.5), np.log(8.0))) / n
    return unit(np.exp(-rate * np.arange(n)) * rng.choice((-1.0, 1.0)))


def exponential(rng: np.random.Generator, n: int) -> Floats:
    """Growth by a constant share, or decay towards nothing seen in reverse."""
    rate = np.exp(rng.uniform(np.log(0.5), np.log(4.0))) / n
    return unit(np.exp(rate * np.arange(n)) * rng.choice((-1.0, 1.0)))


def logistic(rng: np.random.Generator, n: int) -> Floats:
    """From one level to another."""
    width = n * rng.uniform(0.03, 0.3)
    return unit(np.tanh((np.arange(n) - n * rng.uniform(0.0, 1.0)) / width) * rng.choice((-1.0, 1.0)))


def piecewise(rng: np.random.Generator, n: int) -> Floats:
    """One to five straight pieces, joined."""
    knots = int(rng.integers(1, 5))
    at = np.concatenate(([0.0], np.sort(rng.uniform(0.0, n, knots)), [n]))
    heights = np.concatenate(([0.0], np.cumsum(rng.normal(rng.normal(), 1.0, knots + 1) * np.diff(at))))
    return unit(np.interp(np.arange(n), at, heights))


def random_walk(rng: np.random.Generator, n: int) -> Floats:
    """A random walk with or without drift."""
    drift = rng.normal(0.0, 0.3) if rng.random() < 0.5 else 0.0
    return unit(np.cumsum(rng.standard_normal(n) + drift))


def local_linear(rng: np.random.Generator, n: int) -> Floats:
    """Level and slope wander both; the slope is damped."""
    damping = 1 - np.exp(rng.uniform(np.log(0.003), np.log(0.3)))
    noise = rng.standard_normal((2, n))
    slope = np.asarray(lfilter([1.0], [1.0, -damping], noise[0] * (1 - damping)))
    return unit(np.cumsum(slope + np.exp(rng.uniform(-4.0, 0.0)) * noise[1] + rng.normal(0.0, 0.1)))


def still(rng: np.random.Generator, n: int) -> Floats:
    """No trend."""
    return np.zeros(n)


TRENDS = (linear, damped, exponential, logistic, piecewise, random_walk, local_linear, still)
_CUMULATIVE = np.cumsum((0.14, 0.08, 0.08, 0.04, 0.12, 0.26, 0.2, 0.08))


def draw_trend(rng: np.random.Generator, n: int) -> Floats:
    """(n,) of one kind, centred and of unit size, or all zero."""
    kind = int(np.searchsorted(_CUMULATIVE, rng.random() * _CUMULATIVE[-1]))
    return TRENDS[kind](rng, n)
