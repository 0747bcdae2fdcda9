"""Files of the long-horizon benchmarks: a `date` column, a column per channel; the official splits and windows.

ETT (Zhou et al., Informer, AAAI 2021, section 4) is cut after 12, 16 and 20 months of 30 days; what follows is unused.
Other sets of the same shape (Weather, ECL, Traffic, Exchange) are cut at 70 and 80 % of their rows. Every window
counts: loaders that descend from Informer's dropped the last incomplete batch of the test windows.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.errors import UserError

SPLITS = ("train", "val", "test")
_ETT_DAYS = (360, 120, 120)


@dataclass(frozen=True)
class LongSet:
    """One regular table of channels, its splits by rows and the scaler of its training rows.

    Attributes:
        name: the file's, without ending.
        channels: C names.
        values: (N, C) float64 in the file's units; rows after the test split are left out.
        start: whole steps from 1970 to row 0.
        minutes: the step.
        borders: rows at which train, val and test end.
        mean, std: (C,) float64 of the training rows; population standard deviation, 1 for a constant channel.
    """

    name: str
    channels: tuple[str, ...]
    values: Tensor
    start: int
    minutes: int
    borders: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    @property
    def scaled(self) -> Tensor:
        """(N, C) float64: (values - mean) / std, the units that the published errors are in."""
        return (self.values - self.mean) / self.std

    @property
    def periods(self) -> tuple[int, ...]:
        """A day and a week in steps; empty where a day is no whole number of steps."""
        day, rest = divmod(24 * 60, self.minutes)
        return (day, 7 * day) if day > 1 and not rest else ()

    def rows(self, split: str) -> tuple[int, int]:
        """First row and end of a split. Raises UserError for an unknown name."""
        if split not in SPLITS:
            raise UserError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
        at = SPLITS.index(split)
        return (0, *self.borders)[at], self.borders[at]

    def origins(self, split: str, input_len: int, horizon: int) -> Tensor:
        """(n,) int64: first target row of every window, in order, stride 1, none dropped.

        A window's targets lie in its split; its input may lie before the split, never before row 0.

        Raises:
            UserError: no window fits.
        """
        first, end = self.rows(split)
        first = max(first, input_len)
        if input_len < 1 or horizon < 1 or first + horizon > end:
            raise UserError(
                f"'{self.name}' has no {split} window of {input_len} input and {horizon} target steps: "
                f"that split ends at row {end}."
            )
        return torch.arange(first, end - horizon + 1)


def windows(scaled: Tensor, origins: Tensor, input_len: int, horizon: int) -> Tensor:
    """(n, C, input_len + horizon): the windows at `origins` of a table (N, C), a strided view's rows copied."""
    every = scaled.unfold(0, input_len + horizon, 1)  # (N - L - H + 1, C, L + H)
    return every[origins - input_len]


def read_long(path: str | Path, official: bool | None = None) -> LongSet:
    """A CSV file (also .gz) with a `date` column and numbers, cut as the long-horizon tables cut it.

    Args:
        path: the file; ETTh1.csv, ETTm1.csv.gz, weather.csv, ...
        official: True for ETT's months, False for 70/10/20 %, None: months if the file's name begins with ETT.

    Raises:
        UserError: what is wrong with the file, in one sentence.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    frame = _read(path)
    dates = _dates(frame, path)
    values = _numbers(frame.drop(columns="date"), path)
    minutes, start = _clock(dates, path)
    months = name.upper().startswith("ETT") if official is None else official
    borders = _months(len(values), minutes, path) if months else _shares(len(values), path)
    table = torch.from_numpy(values[: borders[-1]])
    train = table[: borders[0]]
    std = train.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    channels = tuple(str(c) for c in frame.columns if c != "date")
    return LongSet(name, channels, table, start, minutes, borders, train.mean(0), std)


def _read(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, compression="gzip" if path.suffix == ".gz" else None)
    except FileNotFoundError:
        raise UserError(f"There is no file '{path}'.") from None
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise UserError(f"'{path}' could not be read as CSV: {str(error).strip()}.") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"'{path}' is empty; expected a header 'date,<channel>,...' and rows.") from None
    if "date" not in frame.columns or len(frame.columns) < 2 or not len(frame):
        raise UserError(
            f"'{path}' has {len(frame)} rows and the columns {', '.join(map(str, frame.columns))}; expected 'date' and "
            "at least one channel, and rows."
        )
    return frame


def _dates(frame: pd.DataFrame, path: Path) -> np.ndarray:
    try:
        return pd.to_datetime(frame["date"]).to_numpy().astype("datetime64[s]")
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' has a date that is none: {str(error).splitlines()[0]}.") from None


def _numbers(frame: pd.DataFrame, path: Path) -> np.ndarray:
    for name in frame.columns:
        column = np.asarray(pd.to_numeric(frame[name], errors="coerce"), dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise UserError(
                f"'{path}', column '{name}', row {bad[0] + 1}: '{frame[name].iloc[bad[0]]}' is no finite number; "
                "the long-horizon sets have none missing."
            )
    return frame.to_numpy(dtype=np.float64)


def _clock(dates: np.ndarray, path: Path) -> tuple[int, int]:
    """The step in minutes and the first row's time in steps since 1970."""
    seconds = dates.astype(np.int64)
    steps = np.diff(seconds)
    step = int(steps[0]) if len(steps) else 0
    if step <= 0 or step % 60:
        raise UserError(f"'{path}' must hold at least two rows in order of time, whole minutes apart.")
    odd = np.flatnonzero(steps != step)
    if len(odd):
        raise UserError(
            f"'{path}' is not regular: {dates[odd[0] + 1]} follows {dates[odd[0]]}, but its rows are "
            f"{step // 60} minutes apart."
        )
    return step // 60, int(seconds[0] // step)


def _months(rows: int, minutes: int, path: Path) -> tuple[int, int, int]:
    day, rest = divmod(24 * 60, minutes)
    train, val, test = (int(x) for x in np.cumsum(_ETT_DAYS) * day)
    if rest or rows < test:
        raise UserError(f"'{path}' has {rows} rows of {minutes} minutes; the ETT splits need 600 days, {test} rows.")
    return train, val, test


def _shares(rows: int, path: Path) -> tuple[int, int, int]:
    """70 %, then what is left, then 20 %, each share rounded down, as the public loaders do."""
    train, test = int(rows * 0.7), int(rows * 0.2)
    if min(train, test, rows - train - test) < 1:
        raise UserError(f"'{path}' has {rows} rows, too few to split 70/10/20.")
    return train, rows - test, rows
