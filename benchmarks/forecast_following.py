"""Who follows a series in :mod:`benchmarks.forecast_cost`, what each is asked to do, and the memory that takes."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apps.timeseries.forecaster import Forecaster
from apps.timeseries.model import build_model
from apps.timeseries.series import Series
from apps.timeseries.stream import Stream
from benchmarks.memory import growth_apart
from benchmarks.report import versions

OURS, TWIN, PEER = "Rimer, RWKV-7", "attention twin, cache", "PatchTST, neuralforecast"
MIXERS = {OURS: "rwkv7", TWIN: "attention"}
PATCH, AHEAD = 16, 96
PIECE = 1000  # steps read at a time by the guard, no multiple of the patch
SEASONS = (24, 168)


class Size(NamedTuple):
    """Of the models."""

    dim: int
    layers: int


def build(name: str, size: Size) -> Forecaster:
    """A model with weights that leave no branch silent, ready to infer."""
    torch.manual_seed(0)
    sizes = {"patch_len": PATCH, "output_len": AHEAD, "dim": size.dim, "num_layers": size.layers}
    model = build_model({"name": "rimer", "mixer": MIXERS[name], **sizes})
    for p in model.parameters():  # maps that start at zero would hide whatever lies before them
        if p.ndim == 2 and not p.any():
            nn.init.normal_(p, std=0.3 * p.shape[1] ** -0.5)
    return model.eval()


def series(batch: int, steps: int) -> Series:
    """A walk with a daily season, (batch, steps), all observed."""
    draw = torch.Generator().manual_seed(1)
    walk = 0.1 * torch.randn(batch, steps, generator=draw, dtype=torch.float64).cumsum(1)
    season = torch.sin(2 * torch.pi * torch.arange(steps, dtype=torch.float64) / SEASONS[0])
    zeros = torch.zeros(batch, dtype=torch.int64)
    return Series(walk + season, torch.ones(batch, steps, dtype=torch.bool), zeros, torch.tensor([SEASONS] * batch))


def read(model: Forecaster, given: Series, piece: int | None = None) -> Stream:
    """The stream that has seen the series, `piece` steps at a time."""
    stream = model.start(given.periods, given.start)
    for part in given.values.split(piece or given.values.shape[1], dim=1):
        stream = model.update(stream, part, torch.ones_like(part, dtype=torch.bool))
    return stream


def error(model: Forecaster, given: Series) -> float:
    """How far the forecast of a stream read in pieces lies from the last token's in one pass over the series."""
    whole = model(given)
    wanted = whole.last(given.values.shape[1], AHEAD)
    found = model.forecast(read(model, given, PIECE), AHEAD)
    found = model.normalise(found, whole.loc[:, -1, :, None], whole.scale[:, -1, :, None])
    return float((found - wanted).abs().max() / wanted.std())


# ------------------------------------------------------------------------------------------------------ contestants


def peer(context: int, h: int) -> nn.Module:
    """neuralforecast's PatchTST with its own sizes, in patches of 16 that do not overlap: as many tokens as ours."""
    for chatty in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(f"{chatty}.utilities.rank_zero").setLevel(logging.WARNING)
    models = importlib.import_module("neuralforecast.models")
    torch.manual_seed(0)
    return models.PatchTST(h=h, input_size=context, patch_len=PATCH, stride=PATCH, enable_progress_bar=False).eval()


def peer_missing() -> str | None:
    """Why there is no row of PatchTST, if there is none."""
    found = versions("neuralforecast")["neuralforecast"]
    return "neuralforecast is not installed: pip install 'greylag[bench]'" if found == "not installed" else None


def cold(model: Forecaster, given: Series, h: int) -> Tensor:
    """Read everything, forecast."""
    return model.forecast(read(model, given), h)


def cold_peer(model: nn.Module, given: Series) -> Tensor:
    """The network alone: no frames, no data loader, no Trainer."""
    return model({"insample_y": given.values.float()[..., None]})


class Following(NamedTuple):
    """What is asked of a stream, each call with how many times it does the thing."""

    patch: Callable[[], object]
    step: Callable[[], object]
    forecast: Callable[[], object]


def following(model: Forecaster, stream: Stream) -> Following:
    """The three calls, from a stream at the end of a patch; the forecast's stream has a half-filled one."""
    new = series(stream.batch, PATCH)
    half = model.update(stream, new.values[:, : PATCH // 2], new.observed[:, : PATCH // 2])

    def steps() -> None:
        now = stream
        for i in range(PATCH):
            now = model.update(now, new.values[:, i : i + 1], new.observed[:, i : i + 1])

    return Following(
        functools.partial(model.update, stream, new.values, new.observed), steps,
        functools.partial(model.forecast, half, AHEAD),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- memory


def peaks(name: str, contexts: Sequence[int], size: Size) -> list[int]:
    """Bytes that reading a history and forecasting needs at most, beyond the model and the series, on one thread."""
    if not contexts:
        return []
    numbers = [*size, *contexts]
    command = [sys.executable, "-m", "benchmarks.forecast_cost", "--peaks", name, *map(str, numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@torch.inference_mode()
def own_peaks(name: str, contexts: Sequence[int], size: Size) -> list[int]:
    """The same of this process, which should be fresh and single-threaded."""

    def reading(context: int) -> Callable[[], object]:
        if name == PEER:
            return functools.partial(cold_peer, peer(context, AHEAD), series(1, context))
        return functools.partial(cold, build(name, size), series(1, context), AHEAD)

    small = reading(4 * PATCH)
    small()  # everything that is loaded once
    return [growth_apart(reading(context), small) for context in contexts]
