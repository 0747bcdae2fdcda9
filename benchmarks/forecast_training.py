"""One training of a forecaster on a long-horizon set in the app's own trainer, and its errors on every window.

It is what ``greylag train`` does, without the run folder: the same composed configuration, data module, task, seeds
and Lightning trainer. Forecasts are made as users make them: a stream is started, fed the window, asked for h steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.timeseries.data import Ett
from apps.timeseries.ett import LongSet, windows
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.ridge import RidgeFit, fit_ridge
from benchmarks.vision_training import Outcome, configuration
from core.train.averaging import AveragedWeights
from core.train.determinism import StepSeeds
from core.train.session import build_data, build_task
from core.train.trainers import build_trainer

HORIZONS = (96, 192, 336, 720)
INPUT_LEN = 672
ALONE, MEAN = "alone", "mean with ridge"
"""A model's own forecasts, and the mean of them and the closed-form ridge's."""

Errors = dict[str, dict[str, tuple[float, float]]]
"""Kind of forecast -> horizon -> (MSE, MAE) on scaled data."""
Guess = Callable[[Tensor, Tensor, int], Tensor]
"""(windows (B, L) float64, their first row (B,), h) -> forecasts (B, h)."""


@dataclass(frozen=True)
class Forecasts(Outcome):
    """What one training gave; `val` and `test` are its mean MSE over the horizons, alone."""

    val_errors: Errors
    test_errors: Errors


def train(words: Sequence[str], table: LongSet, ridges: Mapping[int, RidgeFit], val_stride: int) -> Forecasts:
    """Train as ``greylag train WORDS`` would, then forecast validation and test windows with the averaged weights.

    Args:
        words: overrides, of which ``trainer.max_steps`` ends the training.
        table: the set of ``data.name``.
        ridges: by horizon, for the mean with ridge.
        val_stride: between validation windows; every test window counts.

    Raises:
        UserError: options that do not fit; no data.
        FloatingPointError: the last loss is not finite.
    """
    config = configuration(list(words))
    data = build_data(config)
    assert isinstance(data, Ett)
    task = build_task(config, data)
    average = [AveragedWeights(float(config["ema"]))] if config["ema"] is not None else []
    trainer = build_trainer(config["trainer"], [StepSeeds(int(config["seed"])), *average], [])
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    loss = float(trainer.callback_metrics["train/loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} after {trainer.global_step} steps; a lower optim.lr may help")
    model = task.model.eval()
    assert isinstance(model, Forecaster)
    val = errors(kinds(model, table, ridges), table, "val", val_stride)
    test = errors(kinds(model, table, ridges), table, "test")
    return Forecasts(
        table.name, data.describe()["sizes"], _mean(val), _mean(test), loss, trainer.global_step, round(seconds, 2),
        sum(p.numel() for p in model.parameters()), val, test,
    )  # fmt: skip


def _mean(found: Errors) -> float:
    return float(np.mean([mse for mse, _ in found[ALONE].values()]))


# --------------------------------------------------------------------------------------------------------- forecasts


def fit_ridges(table: LongSet, horizons: Sequence[int] = HORIZONS) -> dict[int, RidgeFit]:
    """The closed-form ridge of each horizon; centre and penalty by validation windows."""
    rows, (train_end, val_end, _) = table.scaled.T, table.borders
    valid = rows[:, train_end - INPUT_LEN : val_end]
    return {h: fit_ridge([rows[:, :train_end]], INPUT_LEN, h, valid=[valid]) for h in horizons}


def by_model(model: Forecaster, table: LongSet) -> Guess:
    """Forecasts as a stream gives them."""
    count = getattr(model, "num_periods", len(table.periods))
    seasons = torch.tensor((*table.periods, *[0] * count)[:count], dtype=torch.int64)

    @torch.inference_mode()
    def guess(values: Tensor, first: Tensor, h: int) -> Tensor:
        stream = model.start(seasons.expand(len(values), -1), table.start + first)
        stream = model.update(stream, values, torch.ones_like(values, dtype=torch.bool))
        found = model.forecast(stream, h)
        return found[..., model.quantiles.index(0.5) if model.quantiles else 0]

    return guess


def kinds(model: Forecaster, table: LongSet, ridges: Mapping[int, RidgeFit]) -> Callable[..., dict[str, Tensor]]:
    """The model's own forecasts and the mean of them and the ridge's, for :func:`errors`."""
    own = by_model(model, table)

    def guesses(values: Tensor, first: Tensor, horizons: Sequence[int]) -> dict[str, Tensor]:
        """Kind and horizon, as "kind h" -> (B, h)."""
        alone = own(values, first, max(horizons))
        found = {f"{ALONE} {h}": alone[:, :h] for h in horizons}
        return found | {f"{MEAN} {h}": (alone[:, :h] + ridges[h].predict(values)) / 2 for h in horizons}

    return guesses


def only(guess: Guess) -> Callable[..., dict[str, Tensor]]:
    """One kind of forecast, for :func:`errors`; asked for each horizon by itself."""
    return lambda values, first, horizons: {f"{ALONE} {h}": guess(values, first, h) for h in horizons}


def errors(
    guesses: Callable[[Tensor, Tensor, Sequence[int]], dict[str, Tensor]],
    table: LongSet,
    split: str,
    stride: int = 1,
    horizons: Sequence[int] = HORIZONS,
    rows: int = 1024,
) -> Errors:
    """MSE and MAE on scaled data over all channels and all windows of a split, `stride` apart.

    Every horizon has all of its own windows: near the split's end only the shorter horizons have some.
    """
    totals: dict[str, Tensor] = {}
    scaled, end = table.scaled, table.rows(split)[1]
    origins = table.origins(split, INPUT_LEN, min(horizons))[::stride]
    for group in origins.split(max(1, rows // scaled.shape[1])):
        for reach, part in _by_reach(group, end, horizons).items():
            cut = windows(scaled, part, INPUT_LEN, max(reach)).flatten(0, 1)
            first = (part - INPUT_LEN).repeat_interleave(scaled.shape[1])
            for name, found in guesses(cut[:, :INPUT_LEN], first, reach).items():
                off = found - cut[:, INPUT_LEN : INPUT_LEN + found.shape[1]]
                sums = torch.stack((off.square().sum(), off.abs().sum(), torch.tensor(off.numel())))
                totals[name] = totals.get(name, torch.zeros(3, dtype=torch.float64)) + sums
    result: Errors = {}
    for name, (squares, sizes, count) in totals.items():
        kind, h = name.rsplit(" ", 1)
        result.setdefault(kind, {})[h] = (float(squares / count), float(sizes / count))
    return {kind: {str(h): found[str(h)] for h in horizons} for kind, found in result.items()}


def _by_reach(origins: Tensor, end: int, horizons: Sequence[int]) -> dict[tuple[int, ...], Tensor]:
    """Windows by the horizons that their split still holds."""
    found: dict[tuple[int, ...], list[int]] = {}
    for origin in origins.tolist():
        found.setdefault(tuple(h for h in horizons if origin + h <= end), []).append(origin)
    return {reach: torch.tensor(members) for reach, members in found.items()}


def seasonal_naive(table: LongSet) -> Guess:
    """The last day again."""
    day = table.periods[0]
    return lambda values, first, h: values[:, -day:].repeat(1, -(-h // day))[:, :h]


def last_value(values: Tensor, first: Tensor, h: int) -> Tensor:
    """The last value again."""
    del first
    return values[:, -1:].expand(-1, h)


def untrained_errors(table: LongSet, ridges: Mapping[int, RidgeFit]) -> dict[str, Errors]:
    """Test errors of what needs no training: ridge, seasonal naive, last value."""
    guesses: dict[str, Guess] = {
        "ridge": lambda values, first, h: ridges[h].predict(values),
        "seasonal naive": seasonal_naive(table),
        "last value": last_value,
    }
    return {name: errors(only(guess), table, "test") for name, guess in guesses.items()}


def plain_options(options: Mapping[str, Any]) -> list[str]:
    """Options as overrides: {"model.dim": 64} -> ["model.dim=64"]."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()]
