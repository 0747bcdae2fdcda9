"""Stamps to whole numbers and back, against pandas' own date ranges and utilsforecast's future frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from utilsforecast.processing import make_future_dataframe

from apps.timeseries.frequency import Calendar, Fixed, Frequency, Months, infer, parse
from core.errors import UserError

ALIASES = ["30s", "15min", "h", "D", "W-TUE", "2W", "3D", "MS", "ME", "QS", "QE-NOV", "YS", "YE", "2MS", "B", "BME"]


def microseconds(times: pd.DatetimeIndex) -> np.ndarray:
    return times.to_numpy().astype("datetime64[us]")


def steps_of(frequency: Frequency, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and phase of one series, a value for each stamp."""
    return frequency.index(stamps), np.repeat(frequency.phases(stamps, np.array([0])), len(stamps))


@pytest.mark.parametrize("first", ["2019-12-29 05:00", "1961-03-01"])
@pytest.mark.parametrize("alias", ALIASES)
def test_index_rises_by_one_and_gives_the_stamps_back(alias: str, first: str) -> None:
    stamps = microseconds(pd.date_range(first, periods=40, freq=alias))
    frequency = parse(alias)
    index, phase = steps_of(frequency, stamps)
    assert (np.diff(index) == 1).all()
    np.testing.assert_array_equal(frequency.stamps(index, phase), stamps)


@pytest.mark.parametrize("alias", ALIASES)
def test_future_stamps_are_those_of_utilsforecast(alias: str) -> None:
    times = pd.date_range("2020-02-01", periods=9, freq=alias)
    frequency = parse(alias)
    index, phase = steps_of(frequency, microseconds(times))
    peer = make_future_dataframe(
        pd.Series(["a"]), pd.DatetimeIndex(times[-1:]), pd.tseries.frequencies.to_offset(alias), 7
    )
    found = frequency.stamps(index[-1] + 1 + np.arange(7), phase[:7])
    np.testing.assert_array_equal(found, peer["ds"].to_numpy().astype("datetime64[us]"))


def test_index_counts_periods_since_1970() -> None:
    day = np.array(["1970-01-08", "1969-12-31"], "datetime64[us]")
    assert parse("D").index(day).tolist() == [7, -1]
    assert parse("h").index(day).tolist() == [7 * 24, -24]
    assert parse("MS").index(np.array(["1971-03-31"], "datetime64[us]")).tolist() == [14]
    assert parse("B").index(np.array(["1970-01-01", "1970-01-05"], "datetime64[us]")).tolist() == [0, 2]
    assert parse(5).index(np.array([10, 15])).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("freq", "expected"),
    [
        ("h", Fixed("h", 3600 * 10**6)), ("1h", Fixed("h", 3600 * 10**6)), ("H", Fixed("h", 3600 * 10**6)),
        ("30min", Fixed("30min", 1800 * 10**6)), ("30m", Fixed("30min", 1800 * 10**6)),
        ("60min", Fixed("h", 3600 * 10**6)), (pd.offsets.Hour(24), Fixed("D", 86400 * 10**6)),
        ("1w", parse("W")), ("7D", parse("W-SUN")), ("1mo", Months("MS", 1)), ("M", Months("MS", 1)),
        ("1q", Months("QS", 3)), ("QE-NOV", Months("QS", 3)), ("1y", Months("YS", 12)), ("12MS", Months("YS", 12)),
        ("1bd", Calendar("B")), (pd.offsets.BusinessMonthEnd(), Calendar("BME")), (3, Fixed(3, 3)),
    ],
)  # fmt: skip
def test_names_of_pandas_and_polars(freq: object, expected: Frequency) -> None:
    assert parse(freq) == expected


@pytest.mark.parametrize("freq", ["fortnight", "-1D", "0h", "", 0, -2, True, 1.5, [], "1x"])
def test_what_is_no_frequency(freq: object) -> None:
    with pytest.raises(UserError, match="freq is"):
        parse(freq)


@pytest.mark.parametrize(
    ("alias", "seasons"),
    [
        ("h", (24, 168)), ("30min", (48, 336)), ("15min", (96, 672)), ("s", (60, 3600)), ("D", (7,)), ("W", (52,)),
        ("2W", (26,)), ("MS", (12,)), ("2MS", (6,)), ("QS", (4,)), ("YS", ()), ("B", (5,)), (1, ()), ("5h", ()),
    ],
)  # fmt: skip
def test_seasons(alias: str | int, seasons: tuple[int, ...]) -> None:
    assert parse(alias).season_lengths == seasons


@pytest.mark.parametrize("alias", [*ALIASES, "WOM-3FRI"])
def test_frequency_is_told_from_the_stamps(alias: str) -> None:
    stamps = microseconds(pd.date_range("2019-12-29 05:00", periods=40, freq=alias))
    assert infer(stamps, np.array([0])) == parse(alias)


def test_frequency_is_told_despite_gaps_and_from_many_short_series() -> None:
    hours = microseconds(pd.date_range("2020-01-01", periods=50, freq="h"))
    assert infer(np.delete(hours, [3, 4, 20]), np.array([0])).alias == "h"
    months = microseconds(pd.date_range("2020-01-31", periods=24, freq="ME"))
    assert infer(np.delete(months, [3, 4, 20]), np.array([0])).alias == "MS"
    assert infer(np.concatenate([hours[:2], hours[:1], hours[7:9]]), np.array([0, 2, 3])).alias == "h"
    assert infer(np.array([0, 10, 25]), np.array([0])).alias == 5


def test_last_days_of_months_stay_last_days() -> None:
    stamps = np.array(["2020-04-30", "2020-06-30"], "datetime64[us]")
    frequency = parse("1mo")
    index, phase = steps_of(frequency, stamps)
    assert str(frequency.stamps(index[-1:] + 1, phase[:1])[0])[:10] == "2020-07-31"


def test_frequency_that_cannot_be_told() -> None:
    with pytest.raises(UserError, match="one row a series; give freq"):
        infer(np.array([1, 2]), np.array([0, 1]))
    jitter = microseconds(pd.date_range("2020-01-01", periods=9, freq="h")) + np.array([0, 0, 0, 0, 0, 7, 0, 0, 0])
    with pytest.raises(UserError, match="most steps are 0 days 01:00:00"):
        infer(jitter, np.array([0]))
