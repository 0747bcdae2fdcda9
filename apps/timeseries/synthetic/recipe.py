"""One synthetic series from a random generator: a rhythm, a process, mixing, wear, a scale.

Sources: KernelSynth and TSMixup from Chronos (Ansari et al., arXiv 2403.07815), the wide mix of structural, regime and
event generators from TempoPFN (arXiv 2510.25502); the code and all constants are our own. No real series is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from apps.timeseries.synthetic import processes
from apps.timeseries.synthetic.events import gaps, wear
from apps.timeseries.synthetic.kernels import gaussian_process
from apps.timeseries.synthetic.rhythms import Rhythm, draw_history, draw_rhythm
from apps.timeseries.synthetic.trends import unit

Floats = np.ndarray
Process = Callable[..., Floats]  # (generator, steps, periods)

# process, share at low frequencies (yearly to weekly), share at high ones (daily and below), positive
PROCESSES: tuple[tuple[Process, float, float, bool], ...] = (
    (gaussian_process, 0.08, 0.2, False),
    (processes.structural, 0.34, 0.2, True),
    (processes.smoothing, 0.22, 0.05, True),
    (processes.arima, 0.1, 0.1, True),
    (processes.walk, 0.12, 0.08, True),
    (processes.regimes, 0.03, 0.1, False),
    (processes.intermittent, 0.02, 0.04, True),
    (processes.counts, 0.04, 0.05, True),
    (processes.demand, 0.05, 0.18, True),
)
_LOW = np.cumsum([low for _, low, _, _ in PROCESSES])
_HIGH = np.cumsum([high for _, _, high, _ in PROCESSES])
MIXED = 0.12  # share of series that are convex mixes of others
TOLD = 0.75  # share of series whose periods are known, as a frequency tells them
GAPPED = 0.05


class Drawn(NamedTuple):
    """A synthetic series: ``values`` and ``observed`` (n,); ``periods`` (2,), 0 where none is told or there is none."""

    values: Floats
    observed: np.ndarray
    start: int
    periods: np.ndarray
    history: int
    """Steps before the ``output_len`` last ones."""


def draw_path(rng: np.random.Generator, n: int, rhythm: Rhythm) -> Floats:
    """A path (n,) of one process with its wear, finite, in any units."""
    shares = _HIGH if len(rhythm.periods) > 1 else _LOW
    process, _, _, positive = PROCESSES[int(np.searchsorted(shares, rng.random() * shares[-1]))]
    return wear(rng, process(rng, n, rhythm.periods), positive=positive)


def mixup(rng: np.random.Generator, n: int, rhythm: Rhythm) -> Floats:
    """TSMixup: a convex mix (n,) of two or three paths of one rhythm, each at unit size."""
    count = int(rng.integers(2, 4))
    weights = rng.dirichlet(np.full(count, 1.5))
    mixed = np.zeros(n)
    for weight in weights:
        mixed += weight * unit(draw_path(rng, n, rhythm))
    return mixed


def _scaled(rng: np.random.Generator, path: Floats) -> Floats:
    """Into units: mostly positive if the path is not so itself; any order of magnitude."""
    low = float(path.min())
    if low < 0 and rng.random() < 0.7:
        path = path - low + rng.exponential(1.5) * (float(path.max()) - low)
    return path * np.exp(rng.uniform(np.log(0.1), np.log(1e4)))


def draw(rng: np.random.Generator, context: int, output_len: int, rhythms: Sequence[str] | None = None) -> Drawn:
    """A series of ``context + output_len`` steps, observed for a history and ``output_len`` steps more.

    Args:
        rng: where all numbers come from.
        context: steps of history, at most; how much there is depends on the rhythm.
        output_len: steps that a forecast reaches beyond.
        rhythms: names from :data:`apps.timeseries.synthetic.rhythms.RHYTHMS`; None: all that fit the context.
    """
    rhythm = draw_rhythm(rng, context, rhythms)
    history = draw_history(rng, rhythm, context)
    steps = history + output_len
    path = mixup(rng, steps, rhythm) if rng.random() < MIXED else draw_path(rng, steps, rhythm)
    values, observed = np.zeros(context + output_len), np.zeros(context + output_len, dtype=bool)
    values[:steps] = _scaled(rng, path)
    observed[:steps] = gaps(rng, steps) if rng.random() < GAPPED else True
    values[~observed] = 0.0
    periods = np.zeros(2, dtype=np.int64)
    if rng.random() < TOLD:
        periods[: len(rhythm.periods)] = rhythm.periods
    return Drawn(values, observed, int(rng.integers(0, 1_000_000)), periods, history)
