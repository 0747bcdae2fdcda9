"""MASE, CRPS and coverage of quantile forecasts, by utilsforecast's losses."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from utilsforecast.losses import coverage, mase, mqloss

from benchmarks.forecast_sets import EvaluationSet

Floats = np.ndarray
LOSS_LEVELS = tuple(i / 10 for i in range(1, 10))
LEVELS = (0.025, *LOSS_LEVELS, 0.975)
"""Quantile levels that a forecast consists of; CRPS is the mean over the inner nine."""


@dataclass(frozen=True)
class Scores:
    """Of one model on one set. `mase` is the mean over series; `crps` the weighted quantile loss of the whole set:
    twice the pinball loss, summed over series, steps and divided by the sum of |y|, mean over the levels 0.1 ... 0.9.
    `coverage80`, `coverage95`: share of values inside the intervals."""

    mase: float
    crps: float
    coverage80: float
    coverage95: float

    def json(self) -> dict[str, float]:
        return asdict(self)


def long_frame(arrays: list[Floats] | Floats, first: list[int] | None = None) -> pd.DataFrame:
    """Series as a long frame: unique_id (their number), ds (whole numbers), y."""
    lengths = [len(values) for values in arrays]
    starts = first or [0] * len(lengths)
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(lengths)), lengths),
            "ds": np.concatenate([np.arange(n) + start for n, start in zip(lengths, starts, strict=True)]),
            "y": np.concatenate(list(arrays)),
        }
    )


def score(evaluation: EvaluationSet, forecast: Floats) -> Scores:
    """Scores of quantiles (series, h, levels of ``LEVELS``).

    The median is scored by MASE. A series whose history is constant at the season's lag has no scale and is refused.

    Raises:
        ValueError: a wrong shape, or something that is no number.
    """
    expected = (len(evaluation), evaluation.h, len(LEVELS))
    if forecast.shape != expected:
        raise ValueError(f"forecasts of {evaluation.name} have shape {forecast.shape}; {expected} was expected")
    if not np.isfinite(forecast).all():
        count = int((~np.isfinite(forecast)).any(axis=(1, 2)).sum())
        raise ValueError(f"forecasts of {count} series of {evaluation.name} are not finite")
    frame = long_frame(evaluation.futures)
    for index, level in enumerate(LEVELS):
        frame[f"q{level}"] = forecast[:, :, index].reshape(-1)
    frame["model"] = frame["q0.5"]
    for width, low, high in ((80, 0.1, 0.9), (95, 0.025, 0.975)):
        frame[f"model-lo-{width}"], frame[f"model-hi-{width}"] = frame[f"q{low}"], frame[f"q{high}"]
    scaled = mase(frame, ["model"], evaluation.scale_season, long_frame(evaluation.histories))["model"].to_numpy()
    if not np.isfinite(scaled).all():
        raise ValueError(f"{evaluation.name} holds series without a MASE scale")
    columns = [f"q{level}" for level in LOSS_LEVELS]
    pinball = mqloss(frame, {"model": columns}, np.array(LOSS_LEVELS))["model"].to_numpy()
    weighted = 2 * pinball.sum() * evaluation.h / np.abs(evaluation.futures).sum()
    inside = [coverage(frame, ["model"], width)["model"].to_numpy().mean().item() for width in (80, 95)]
    return Scores(scaled.mean().item(), weighted.item(), *inside)


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))
