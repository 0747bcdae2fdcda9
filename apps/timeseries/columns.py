"""The columns of users' frames, read through narwhals: whether they are there, and what type their values have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import pandas as pd

from core.errors import UserError, did_you_mean


class Columns(NamedTuple):
    """The names of a frame's columns."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"


NIXTLA = Columns()


def open_frame(df: Any, columns: Columns, wanted: Sequence[str], name: str) -> nw.DataFrame[Any]:
    """A user's frame; UserError if it is none, is empty, lacks one of the columns or has empty ids or times."""
    try:
        frame = nw.from_native(df, eager_only=True)
    except TypeError:
        raise UserError(f"{name} is a {type(df).__name__}; a pandas or polars DataFrame was expected.") from None
    for column in (columns.unique_id, columns.ds, *wanted):
        if frame.columns.count(column) != 1:
            near = did_you_mean(column, [str(other) for other in frame.columns])
            raise UserError(f"{name} has no column '{column}'{near}")
    if not len(frame):
        raise UserError(f"{name} has no rows; at least one for each series was expected.")
    for column in (columns.unique_id, columns.ds):
        if empty := frame[column].null_count():
            raise UserError(f"{empty} of {len(frame)} rows of {name} have an empty '{column}'; fill or drop them.")
    return frame


def read_times(times: nw.Series[Any], name: str) -> nw.Series[Any]:
    """Integers and times as they are; dates, and text in ISO form, as times."""
    if times.dtype.is_integer() or isinstance(times.dtype, nw.Datetime):
        return times
    if times.dtype == nw.Date:
        return times.cast(nw.Datetime("us"))
    if not isinstance(times.dtype, nw.String | nw.Object | nw.Categorical):
        raise UserError(
            f"Column '{times.name}' of {name} holds {times.dtype}; times, whole numbers or text such as '2026-01-31' "
            "were expected."
        )
    text = times.to_list()
    parsed = pd.to_datetime(pd.Series(text, dtype=object), errors="coerce", format="ISO8601", utc=True)
    if parsed.isna().any():
        bad = text[int(parsed.isna().to_numpy().argmax())]
        raise UserError(
            f"{bad!r} in column '{times.name}' of {name} is no time in ISO form, such as '2026-01-31 12:00'; convert "
            "the column first, with its own format (pandas.to_datetime, polars' str.to_datetime)."
        )
    stamps = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    return nw.new_series(times.name, stamps, backend=times.implementation)


def read_numbers(frame: nw.DataFrame[Any], column: str, columns: Columns, name: str) -> np.ndarray:
    """(N,) float64, NaN where empty."""
    held = frame[column]
    if held.null_count() == len(held):
        return np.full(len(held), np.nan)
    if not (held.dtype.is_numeric() or held.dtype == nw.Boolean):
        raise UserError(
            f"Column '{column}' of {name} holds {held.dtype}; numbers were expected: convert it first "
            "(pandas.to_numeric, codes or 0/1 columns for categories)."
        )
    numbers = np.array(held.cast(nw.Float64).to_numpy(), np.float64)
    if (endless := np.isinf(numbers)).any():
        at = int(endless.argmax())
        time = f" at {frame[columns.ds][at]}" if columns.ds in frame.columns else ""
        raise UserError(
            f"Column '{column}' of {name} is {numbers[at]} for {frame[columns.unique_id][at]!r}{time}; finite numbers "
            "were expected, or NaN for a missing one."
        )
    return numbers
