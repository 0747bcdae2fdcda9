"""Steps of time: between the stamps of a frame and whole numbers, either way.

A step has an index, the whole periods since 1970 (so that seasons keep their phase from window to window), and a
series has a phase: where in their periods its stamps lie. Index and phase together are the stamp again; a stamp
that they do not give back is an irregular one. Stamps are int64 numbers or datetime64[us].
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset

from core.errors import UserError

SECOND, MINUTE, HOUR, DAY = 10**6, 60 * 10**6, 3600 * 10**6, 24 * 3600 * 10**6  # in microseconds
WEEK = 7 * DAY

_FIXED = {
    **dict.fromkeys(("us",), 1),
    **dict.fromkeys(("ms",), 1000),
    **dict.fromkeys(("s", "S"), SECOND),
    **dict.fromkeys(("min", "T", "m"), MINUTE),
    **dict.fromkeys(("h", "H"), HOUR),
    **dict.fromkeys(("D", "d"), DAY),
    **dict.fromkeys(("W", "w"), WEEK),
}
_MONTHS = {
    **dict.fromkeys(("MS", "ME", "M", "mo"), 1),
    **dict.fromkeys(("QS", "QE", "Q", "q"), 3),
    **dict.fromkeys(("YS", "YE", "Y", "AS", "A", "y"), 12),
}
"""pandas' names, its former ones, and polars'."""
_EXAMPLES = "such as 'h', '30min', 'D', 'W', 'MS', 'QS', 'YS', 'B' or polars' '1h', '1mo', or a whole number"


class Frequency(ABC):
    """How far apart the steps of the series are."""

    alias: Any
    """As pandas names it, or the whole number between integer stamps."""

    @property
    def integer(self) -> bool:
        """Whether stamps are numbers instead of times."""
        return isinstance(self.alias, int)

    @property
    def wall_time(self) -> bool:
        """Whether steps follow the clock on the wall, as days and months do, rather than elapsed time."""
        return True

    @abstractmethod
    def index(self, stamps: np.ndarray) -> np.ndarray:
        """Stamps (N,) -> whole periods since 1970 (since 0), (N,) int64."""

    @abstractmethod
    def phases(self, stamps: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """The phases (B,) int64 of series that lie one after the other in `stamps`, beginning at `begins` (B,)."""

    @abstractmethod
    def stamps(self, index: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`index`: (N,) and the phase of each, (N,) -> stamps (N,)."""

    @property
    @abstractmethod
    def season_lengths(self) -> tuple[int, ...]:
        """The usual seasons in steps, the most important first; () if there are none."""


@dataclass(frozen=True)
class Fixed(Frequency):
    """Steps of one length: `length` microseconds, or numbers where stamps are integers."""

    alias: Any
    length: int

    @property
    def wall_time(self) -> bool:
        """Days and weeks follow the wall's clock, hours do not."""
        return self.length % DAY == 0

    def index(self, stamps: np.ndarray) -> np.ndarray:
        """See the base class."""
        return stamps.astype(np.int64) // self.length

    def phases(self, stamps: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """What the first stamp is past its period's beginning."""
        return stamps[begins].astype(np.int64) % self.length

    def stamps(self, index: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """See the base class."""
        found = index * self.length + phase
        return found if self.integer else found.astype("datetime64[us]")

    @property
    def season_lengths(self) -> tuple[int, ...]:
        """Day and week below a day, hour below a minute; a week of days; a year of weeks."""
        if self.integer:
            return ()
        if self.length % WEEK == 0:
            year = round(365.25 * DAY / self.length)
            return (year,) if year > 1 else ()
        cycles = (MINUTE, HOUR) if self.length < MINUTE else (DAY, WEEK)
        return tuple(cycle // self.length for cycle in cycles if cycle % self.length == 0 and cycle > self.length)


@dataclass(frozen=True)
class Months(Frequency):
    """Steps of `count` months, each stamp as far from its month's beginning as the others, or from its end."""

    alias: Any
    count: int

    def index(self, stamps: np.ndarray) -> np.ndarray:
        """See the base class."""
        return stamps.astype("datetime64[M]").astype(np.int64) // self.count

    def phases(self, stamps: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Microseconds from the month's beginning, or (negative) from its end where all stamps are on last days;
        times `count`, plus the month within the period."""
        month = stamps.astype("datetime64[M]")
        last_day = (stamps + np.timedelta64(1, "D")).astype("datetime64[M]") > month
        at_end = np.logical_and.reduceat(last_day, begins)
        anchor = month[begins] + at_end.astype(np.int64)
        return (stamps[begins] - anchor).astype(np.int64) * self.count + month[begins].astype(np.int64) % self.count

    def stamps(self, index: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """See the base class."""
        from_anchor, within = np.divmod(phase, self.count)
        month = index * self.count + within + (from_anchor < 0)
        return month.astype("datetime64[M]").astype("datetime64[us]") + from_anchor.astype("timedelta64[us]")

    @property
    def season_lengths(self) -> tuple[int, ...]:
        """A year."""
        return (12 // self.count,) if 12 % self.count == 0 and self.count < 12 else ()


@dataclass(frozen=True)
class Calendar(Frequency):
    """Steps along the days of any pandas offset: business days, third Fridays, ..."""

    alias: Any

    @cached_property
    def _offset(self) -> BaseOffset:
        return to_offset(self.alias)

    @cached_property
    def _single(self) -> BaseOffset:
        return self._offset.base

    def _days(self, low: int, high: int) -> np.ndarray:
        """The offset's days numbered low to high - 1, where day 0 is the first in or after 1970."""
        ahead = pd.date_range("1970-01-01", periods=max(high, 0), freq=self._single)
        behind = pd.date_range(end="1969-12-31", periods=max(-low, 0), freq=self._single)
        days = np.concatenate([behind.to_numpy(), ahead.to_numpy()]).astype("datetime64[us]")
        return days[low - min(low, 0) : high - min(low, 0)]

    def index(self, stamps: np.ndarray) -> np.ndarray:
        """See the base class."""
        ahead = pd.date_range("1970-01-01", max(stamps.max(), _EPOCH), freq=self._single)
        behind = pd.date_range(min(stamps.min(), _EPOCH), "1969-12-31", freq=self._single)
        days = np.concatenate([behind.to_numpy(), ahead.to_numpy()]).astype("datetime64[us]")
        return (np.searchsorted(days, stamps, side="right") - 1 - len(behind)) // self._offset.n

    def phases(self, stamps: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """The time of day; times the offset's multiple, plus the day within the period."""
        first, n = stamps[begins], self._offset.n
        day = Calendar(self._single.freqstr).index(first)
        return (first - first.astype("datetime64[D]")).astype(np.int64) * n + day % n

    def stamps(self, index: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """See the base class."""
        time, within = np.divmod(phase, self._offset.n)
        number = index * self._offset.n + within
        low = int(number.min(initial=0))
        days = self._days(low, int(number.max(initial=0)) + 1)
        return days[number - low].astype("datetime64[D]") + time.astype("timedelta64[us]")

    @property
    def season_lengths(self) -> tuple[int, ...]:
        """A week of business days."""
        return (5,) if self.alias == "B" else ()


_EPOCH = np.datetime64("1970-01-01", "us")


def parse(freq: Any) -> Frequency:
    """A frequency as users write it.

    Args:
        freq: a pandas alias or offset ("h", "30min", "W-SUN", "MS", ...), a polars string ("1h", "1mo"), or the
            whole number between integer stamps.

    Raises:
        UserError: none of these, or not positive.
    """
    if isinstance(freq, Frequency):
        return freq
    if isinstance(freq, int | np.integer) and not isinstance(freq, bool):
        if freq < 1:
            raise UserError(f"freq is {freq}; the step between integer stamps must be at least 1.")
        return Fixed(int(freq), int(freq))
    name = freq.freqstr if isinstance(freq, BaseOffset) else freq
    refusal = UserError(f"freq is {freq!r}; expected a frequency {_EXAMPLES}.")
    if not isinstance(name, str):
        raise refusal
    if parts := re.fullmatch(r"(\d*)([a-zA-Z]+)(-[A-Z]{3})?", name.strip()):
        many, unit = int(parts[1] or 1), parts[2]
        if many and unit in _FIXED:
            return _fixed(many * _FIXED[unit])
        if many and unit in _MONTHS:
            return _months(many * _MONTHS[unit])
    try:
        offset: Any = to_offset({"bd": "B", "1bd": "B"}.get(name, name))
    except ValueError:
        raise refusal from None
    if offset is None or offset.n < 1:
        raise refusal
    return Calendar(offset.freqstr)


def _fixed(length: int) -> Fixed:
    """Named by its largest whole unit: 3600 s are "h"."""
    for unit in ("W", "D", "h", "min", "s", "ms", "us"):
        if length % _FIXED[unit] == 0:
            break
    many = length // _FIXED[unit]
    return Fixed(unit if many == 1 else f"{many}{unit}", length)


def _months(count: int) -> Months:
    unit = next(unit for unit in ("YS", "QS", "MS") if count % _MONTHS[unit] == 0)
    many = count // _MONTHS[unit]
    return Months(unit if many == 1 else f"{many}{unit}", count)


def infer(stamps: np.ndarray, begins: np.ndarray) -> Frequency:
    """The frequency of series that lie one after the other, each in rising order without repeats; gaps may be there.

    Args:
        stamps: (N,) int64 or datetime64[us].
        begins: (B,) where each series begins.

    Raises:
        UserError: no two stamps of one series, or steps of no common kind.
    """
    inner = np.ones(len(stamps), bool)
    inner[begins] = False
    steps = (stamps[1:] - stamps[:-1])[inner[1:]].astype(np.int64)
    if not len(steps):
        raise UserError(f"The frequency cannot be told from one row a series; give freq, {_EXAMPLES}.")
    unit = int(np.gcd.reduce(steps))
    if np.issubdtype(stamps.dtype, np.integer):
        return parse(unit)
    if steps.min() >= 28 * DAY and (found := _infer_months(stamps, begins, inner)):
        return found
    lengths, counts = np.unique(steps, return_counts=True)
    most = int(lengths[counts.argmax()])
    if most == unit == DAY and len(stamps) > 5 and np.is_busday(stamps.astype("datetime64[D]")).all():
        return Calendar("B")
    if most != unit:
        if found := _infer_calendar(stamps, begins):
            return found
        common = pd.Timedelta(most, "us")
        raise UserError(
            f"The frequency cannot be told: most steps are {common}, but others are no multiple of that; round or "
            f"resample the timestamps, or give freq, {_EXAMPLES}."
        )
    return _fixed(unit)


def _infer_months(stamps: np.ndarray, begins: np.ndarray, inner: np.ndarray) -> Months | None:
    """Months, if the stamps of every series are as far from the beginning or the end of theirs."""
    monthly = Months("MS", 1)
    sizes = np.diff(np.append(begins, len(stamps)))
    index = monthly.index(stamps)
    phase = np.repeat(monthly.phases(stamps, begins), sizes)
    if (monthly.stamps(index, phase) != stamps).any():
        return None
    return _months(int(np.gcd.reduce(np.diff(index)[inner[1:]])))


def _infer_calendar(stamps: np.ndarray, begins: np.ndarray) -> Frequency | None:
    """What pandas makes of the longest series."""
    ends = np.append(begins, len(stamps))
    longest = int(np.diff(ends).argmax())
    times = pd.DatetimeIndex(stamps[ends[longest] : ends[longest + 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 3 announces that an offset will be returned; parse takes either
        found = pd.infer_freq(times) if len(times) > 2 else None
    return parse(found) if found else None
