"""What one file holds: histories, the steps to come with what is known of them, and what is fixed for each series."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from apps.timeseries.columns import Columns
from core.errors import UserError, did_you_mean


def is_ahead(frame: pd.DataFrame, columns: Columns) -> pd.Series:
    """(rows,) bool: rows after the last one of their series that has a target. None of a series without any."""
    times = pd.Series(frame[columns.ds])
    if not pd.api.types.is_numeric_dtype(times):
        times = pd.to_datetime(times, errors="coerce", format="ISO8601", utc=True)
    known = times.where(frame[columns.y].notna())
    return times > known.groupby(frame[columns.unique_id]).transform("max")


def static_part(frame: pd.DataFrame, columns: Columns, names: Sequence[str], what: str) -> pd.DataFrame | None:
    """One row a series with its static covariates, which stand in every row of it; None without such.

    Raises:
        UserError: a column is missing from ``what``, or changes within a series.
    """
    if not names:
        return None
    for name in names:
        if name not in frame.columns:
            raise UserError(f"{what} has no column '{name}'{did_you_mean(name, [str(c) for c in frame.columns])}")
    fixed = pd.DataFrame(frame, columns=pd.Index([columns.unique_id, *names])).drop_duplicates()
    if (twice := fixed.duplicated(columns.unique_id)).any():
        which = list(fixed[columns.unique_id])[list(twice).index(True)]
        raise UserError(f"The static columns of {what} change within series '{which}'; they belong to hist.")
    return fixed
