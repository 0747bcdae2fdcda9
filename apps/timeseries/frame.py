"""Between long frames (a row for each series and step; pandas or polars) and arrays.

Rows may come in any order. A step without a row, or with an empty target, is a missing value. What a frame cannot
mean is refused in a sentence: unknown columns, repeated or irregular stamps, infinities.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from apps.timeseries import frequency
from apps.timeseries.columns import NIXTLA, Columns, open_frame, read_numbers, read_times
from apps.timeseries.frequency import Frequency
from core.errors import UserError

MOST_MISSING = 1000
"""Steps without a row for each one with; more mean a wrong stamp or frequency."""
ENOUGH_STEPS = 10
"""From so many on that are all multiples of several steps, the frequency is another one."""


@dataclass(frozen=True)
class Style:
    """What a frame handed back must be like: the library and the types of the one that came."""

    backend: Any = "pandas"
    id_dtype: Any = None
    time_dtype: Any = None
    zone: str | None = None


@dataclass(frozen=True)
class Table:
    """Series of a frame, sorted by id, each from its first row to its last without gaps."""

    ids: list[Hashable]
    frequency: Frequency
    start: np.ndarray
    """(B,) int64, the index of each first step: whole periods since 1970."""
    phase: np.ndarray
    """(B,) int64, see :mod:`apps.timeseries.frequency`."""
    values: list[np.ndarray]
    """B arrays (N_b,) float64, NaN where missing; without a target column, all NaN."""
    extra: list[np.ndarray]
    """B arrays (N_b, C) float64, the covariates asked for; NaN where missing."""
    style: Style

    @property
    def lengths(self) -> np.ndarray:
        """(B,) int64: steps of each series."""
        return np.array([len(values) for values in self.values], np.int64)

    @property
    def end(self) -> np.ndarray:
        """(B,) int64, the index of the step after each last one."""
        return self.start + self.lengths

    def between(self, begins: np.ndarray, ends: np.ndarray) -> Table:
        """Steps `begins` to `ends` (B,) of each series; those that have none there are left out."""
        kept = np.flatnonzero(np.minimum(ends, self.lengths) > begins)
        return replace(
            self,
            ids=[self.ids[i] for i in kept],
            start=self.start[kept] + begins[kept],
            phase=self.phase[kept],
            values=[self.values[i][begins[i] : ends[i]] for i in kept],
            extra=[self.extra[i][begins[i] : ends[i]] for i in kept],
        )


def read(
    df: Any,
    columns: Columns = NIXTLA,
    freq: Any = None,
    extra: Sequence[str] = (),
    *,
    target: bool = True,
    phases: Mapping[Hashable, int] | None = None,
    name: str = "df",
) -> Table:
    """Series of a long frame.

    Args:
        df: pandas or polars (or what else narwhals takes eagerly).
        columns: the names of its columns.
        freq: see :func:`apps.timeseries.frequency.parse`; None: told from the stamps.
        extra: names of covariate columns to read too.
        target: whether the target column is read.
        phases: those known from earlier rows, by id.
        name: what messages call the frame.

    Raises:
        UserError: with the reason: no frame, no rows, missing columns, wrong types, empty ids or stamps, repeated,
            irregular or unreadable stamps, infinite values.
    """
    wanted = [*([columns.y] if target else []), *extra]
    frame = open_frame(df, columns, wanted, name)
    ids, times = frame[columns.unique_id], read_times(frame[columns.ds], name)
    codes, keys = _distinct(ids, name)
    elapsed, wall = _clocks(times)
    order = np.lexsort((elapsed, codes))
    codes, elapsed, wall = codes[order], elapsed[order], wall[order]
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    _refuse_repeats(elapsed, begins, keys, name)
    found = _settle(times, elapsed, wall, begins, freq, name)
    stamps = wall if found.wall_time else elapsed
    index, phase = _regular(found, stamps, begins, keys, phases or {}, name)
    if freq is not None and target:
        _refuse_sparse(found, index, begins, name)
    held = [read_numbers(frame, column, columns, name)[order] for column in wanted]
    numbers = np.column_stack(held) if held else np.empty((len(stamps), 0))
    start, dense = _spread(index, begins, numbers, keys, stamps, found, name)
    values = [part[:, 0] if target else np.full(len(part), np.nan) for part in dense]
    time_dtype = nw.Date() if frame[columns.ds].dtype == nw.Date else times.dtype  # text comes back as times
    style = Style(frame.implementation, ids.dtype, time_dtype, getattr(time_dtype, "time_zone", None))
    return Table(keys, found, start, phase, values, [part[:, int(target) :] for part in dense], style)


def write(
    ids_of_rows: Sequence[Hashable],
    stamps: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    columns: Columns,
    frequency: Frequency,
    style: Style,
) -> Any:
    """A frame of the style's kind.

    Args:
        ids_of_rows: of each row.
        stamps: of each row, (N,) as :meth:`Frequency.stamps` gives them; further ones may be among the outputs.
        outputs: columns by name, (N,).
        columns, frequency, style: of the frame that came.
    """
    ids = nw.new_series(columns.unique_id, list(ids_of_rows), backend=style.backend)
    if style.id_dtype is not None and ids.dtype != style.id_dtype and style.id_dtype != nw.Object:
        ids = ids.cast(style.id_dtype)
    series = [ids, _write_times(columns.ds, stamps, frequency, style)]
    for name, values in outputs.items():
        if np.issubdtype(values.dtype, np.datetime64) or (frequency.integer and values.dtype == np.int64):
            series.append(_write_times(name, values, frequency, style))
        else:
            series.append(nw.new_series(name, values, backend=style.backend))
    return nw.from_dict({part.name: part for part in series}).to_native()


def tell(stamp: Any) -> str:
    """A stamp as people write it."""
    return str(stamp) if isinstance(stamp, np.integer) else str(pd.Timestamp(stamp)).removesuffix(" 00:00:00")


def _distinct(ids: nw.Series[Any], name: str) -> tuple[np.ndarray, list[Hashable]]:
    """The number of each row's series, (N,), and the ids in rising order."""
    try:
        codes, keys = pd.factorize(ids.to_numpy(), sort=True)
    except TypeError:
        raise UserError(f"Column '{ids.name}' of {name} mixes types; one type of ids was expected.") from None
    return codes, keys.tolist()


def _clocks(times: nw.Series[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Stamps by elapsed and by wall time, int64 or datetime64[us]; they differ where the column has a zone."""
    if times.dtype.is_integer():
        stamps = times.to_numpy().astype(np.int64)
        return stamps, stamps
    if getattr(times.dtype, "time_zone", None) is None:
        stamps = times.to_numpy().astype("datetime64[us]")
        return stamps, stamps
    plain = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None), times.dt.replace_time_zone(None)
    elapsed, wall = (part.to_numpy().astype("datetime64[us]") for part in plain)
    return elapsed, wall


def _settle(
    times: nw.Series[Any], elapsed: np.ndarray, wall: np.ndarray, begins: np.ndarray, freq: Any, name: str
) -> Frequency:
    """The frequency, given or told from the stamps."""
    if freq is None:
        try:
            found = frequency.infer(elapsed, begins)
        except UserError:  # days are 23 to 25 hours long where clocks change
            return frequency.infer(wall, begins)
        return frequency.infer(wall, begins) if found.wall_time else found
    given = frequency.parse(freq)
    if times.dtype.is_integer() and not given.integer:
        raise UserError(
            f"Column '{times.name}' of {name} holds whole numbers, but freq is {given.alias!r}; give the step "
            "between them (freq=1), or times."
        )
    if given.integer and not times.dtype.is_integer():
        raise UserError(
            f"Column '{times.name}' of {name} holds times, but freq is {freq}; give one such as 'h' or 'MS'."
        )
    return given


def _write_times(name: str, stamps: np.ndarray, frequency: Frequency, style: Style) -> nw.Series[Any]:
    if style.zone is not None and frequency.wall_time:
        local = pd.DatetimeIndex(stamps).tz_localize(
            style.zone, ambiguous=np.zeros(len(stamps), bool), nonexistent="shift_forward"
        )
        stamps = local.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]")
    times = nw.new_series(name, stamps, backend=style.backend)
    if style.zone is not None:
        times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(style.zone)
    return times if style.time_dtype in (None, times.dtype) else times.cast(style.time_dtype)


def _refuse_repeats(stamps: np.ndarray, begins: np.ndarray, keys: list[Hashable], name: str) -> None:
    repeated = np.append(stamps[1:] == stamps[:-1], False)
    repeated[begins[1:] - 1] = False
    if repeated.any():
        at = int(repeated.argmax())
        raise UserError(
            f"{name} has several rows of {_owner(at, begins, keys)!r} at {tell(stamps[at])}; one for each series "
            f"and step was expected ({int(repeated.sum())} too many): drop or add up the repeated ones."
        )


def _owner(row: int, begins: np.ndarray, keys: list[Hashable]) -> Hashable:
    """Whose row this is."""
    return keys[int(np.searchsorted(begins, row, side="right")) - 1]


def _regular(
    freq: Frequency,
    stamps: np.ndarray,
    begins: np.ndarray,
    keys: list[Hashable],
    phases: Mapping[Hashable, int],
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Index of each row, phase of each series; UserError where they do not give the stamps back."""
    index, phase = freq.index(stamps), freq.phases(stamps, begins)
    if phases:
        phase = np.array([phases.get(key, own) for key, own in zip(keys, phase.tolist(), strict=True)], np.int64)
    sizes = np.diff(np.append(begins, len(stamps)))
    expected = freq.stamps(index, np.repeat(phase, sizes))
    if (off := expected != stamps).any():
        at = int(off.argmax())
        raise UserError(
            f"{name} has a row of {_owner(at, begins, keys)!r} at {tell(stamps[at])}, between the steps of "
            f"frequency {freq.alias!r} (the nearest before it is {tell(expected[at])}); give another freq, "
            "or round or resample the timestamps."
        )
    return index, phase


def _refuse_sparse(freq: Frequency, index: np.ndarray, begins: np.ndarray, name: str) -> None:
    """UserError where all rows keep several steps apart: then the frequency is another one."""
    steps = np.delete(np.diff(index), begins[1:] - 1)
    if len(steps) >= ENOUGH_STEPS and (apart := int(np.gcd.reduce(steps))) > 1:
        raise UserError(
            f"The rows of {name} are {apart} steps of frequency {freq.alias!r} apart; give the freq that they have."
        )


def _spread(
    index: np.ndarray,
    begins: np.ndarray,
    numbers: np.ndarray,
    keys: list[Hashable],
    stamps: np.ndarray,
    freq: Frequency,
    name: str,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows (N, C) -> first indices (B,) and an array (N_b, C) for each series, NaN in steps without a row."""
    sizes = np.diff(np.append(begins, len(index)))
    start, last = index[begins], index[begins + sizes - 1]
    lengths = last - start + 1
    if (sparse := lengths > MOST_MISSING * sizes).any():
        at = int(sparse.argmax())
        first, final = (tell(stamps[row]) for row in (begins[at], begins[at] + sizes[at] - 1))
        raise UserError(
            f"{name} has {sizes[at]} rows of {keys[at]!r} between {first} and {final}, which are {lengths[at]:,} steps "
            f"of frequency {freq.alias!r}: a stamp or freq must be wrong."
        )
    offsets = np.cumsum(lengths) - lengths
    dense = np.full((int(lengths.sum()), numbers.shape[1]), np.nan)
    dense[index + np.repeat(offsets - start, sizes)] = numbers
    return start, np.split(dense, offsets[1:])
