"""Long frames to arrays and back: any order of rows, pandas and polars alike, mistakes told in a sentence."""

from __future__ import annotations

import itertools
from datetime import date
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

from apps.timeseries import frame
from apps.timeseries.columns import Columns
from apps.timeseries.covariates import Covariates
from apps.timeseries.frame import Table
from core.errors import UserError


def long_frame(**changes: Any) -> pd.DataFrame:
    """Two hourly series; "a" with a gap at 02:00 and an empty value at 03:00."""
    hours = pd.date_range("2026-01-01", periods=6, freq="h")
    columns = {
        "unique_id": ["a"] * 5 + ["b"] * 3,
        "ds": [*hours.delete(2), *hours[3:]],
        "y": [1.0, 2.0, np.nan, 5.0, 6.0, 7.0, 8.0, 9.0],
    }
    return pd.DataFrame(columns | changes)


def ahead_of(table: Table, h: int) -> Any:
    """A frame of the h steps after a table, as forecasts are written."""
    ids = [key for key in table.ids for _ in range(h)]
    steps = (table.end[:, None] + np.arange(h)).ravel()
    stamps = table.frequency.stamps(steps, np.repeat(table.phase, h))
    return frame.write(ids, stamps, {"Rimer": np.zeros(len(ids))}, Columns(), table.frequency, table.style)


def test_gaps_and_empty_values_are_missing() -> None:
    table = frame.read(long_frame())
    assert table.ids == ["a", "b"]
    assert table.frequency.alias == "h"
    np.testing.assert_array_equal(table.values[0], [1, 2, np.nan, np.nan, 5, 6])
    np.testing.assert_array_equal(table.values[1], [7, 8, 9])
    assert (table.start[1] - table.start[0], table.start[0] % 24) == (3, 0)


def test_order_of_rows_does_not_matter() -> None:
    rows = long_frame(x=np.arange(8.0))
    one = frame.read(rows, extra=["x"])
    other = frame.read(rows.sample(frac=1, random_state=3), extra=["x"])
    assert one.ids == other.ids
    for left, right in zip(one.values + one.extra, other.values + other.extra, strict=True):
        np.testing.assert_array_equal(left, right)


def test_polars_is_read_as_pandas_is() -> None:
    rows = long_frame(x=np.arange(8))
    one, other = frame.read(rows, extra=["x"]), frame.read(pl.from_pandas(rows), extra=["x"])
    assert (one.ids, one.frequency) == (other.ids, other.frequency)
    np.testing.assert_array_equal(one.start, other.start)
    for left, right in zip(one.values + one.extra, other.values + other.extra, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("ids", ["text", "numbers", "categories"])
@pytest.mark.parametrize(
    ("library", "times"),
    [*itertools.product(["pandas", "polars"], ["ns", "zone", "whole numbers"]), ("polars", "dates")],
)
def test_frames_come_back_as_they_came(library: str, ids: str, times: str) -> None:
    rows = pd.DataFrame({"unique_id": ["b", "b", "a", "a"], "ds": pd.date_range("2026-01-01", periods=4).tolist()})
    rows["y"] = 1.0
    if ids != "text":
        rows["unique_id"] = [7, 7, 3, 3] if ids == "numbers" else rows["unique_id"].astype("category")
    if times == "zone":
        rows["ds"] = rows["ds"].dt.tz_localize("Europe/Vienna")
    elif times == "whole numbers":
        rows["ds"] = np.arange(4, dtype=np.int32)
    else:
        rows["ds"] = rows["ds"].astype("datetime64[ns]")
    given: Any = rows if library == "pandas" else pl.from_pandas(rows)
    if times == "dates":
        given = given.with_columns(pl.col("ds").cast(pl.Date))
    found = ahead_of(frame.read(given), 2)
    assert type(found) is type(given)
    assert nw.from_native(found).schema == {**nw.from_native(given.head(0)).drop("y").schema, "Rimer": nw.Float64()}
    last = given[given["unique_id"] == given["unique_id"][0]] if library == "pandas" else given[:2]
    mine = nw.from_native(found).filter(nw.col("unique_id") == nw.from_native(given)["unique_id"][0])["ds"].to_list()
    step = 1 if times == "whole numbers" else pd.Timedelta("1D")
    assert mine == [list(last["ds"])[-1] + step, list(last["ds"])[-1] + 2 * step]


def test_hours_through_a_change_of_clocks() -> None:
    hours = pd.date_range("2026-03-28 20:00", periods=12, freq="h", tz="Europe/Vienna")
    table = frame.read(pd.DataFrame({"unique_id": "a", "ds": hours, "y": 1.0}))
    assert (table.frequency.alias, len(table.values[0])) == ("h", 12)
    assert ahead_of(table, 1)["ds"][0] == hours[-1] + pd.Timedelta("1h")


def test_days_through_a_change_of_clocks() -> None:
    days = pd.date_range("2026-03-25", periods=9, freq="D", tz="Europe/Vienna")
    table = frame.read(pd.DataFrame({"unique_id": "a", "ds": days, "y": 1.0}))
    assert (table.frequency.alias, len(table.values[0])) == ("D", 9)
    assert str(ahead_of(table, 1)["ds"][0]) == "2026-04-03 00:00:00+02:00"


def test_own_column_names_and_text_for_times() -> None:
    rows = pd.DataFrame({"shop": ["x", "x"], "day": ["2026-01-31", "2026-02-28"], "sold": [1, 2]})
    table = frame.read(rows, Columns("shop", "day", "sold"))
    assert table.frequency.alias == "MS"
    np.testing.assert_array_equal(table.values[0], [1.0, 2.0])
    dates = pl.DataFrame({"unique_id": ["x"] * 2, "ds": [date(2026, 1, 1), date(2026, 1, 8)], "y": [None, None]})
    assert np.isnan(frame.read(dates).values[0]).all()


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({}, {"columns": Columns(y="target")}, r"df has no column 'target'; there are: unique_id, ds, y"),
        ({}, {"columns": Columns(ds="dss")}, r"df has no column 'dss'; did you mean 'ds'\?"),
        (
            {"unique_id": "a", "ds": pd.Timestamp("2026-01-01")},
            {},
            "several rows of 'a' at 2026-01-01; one.*7 too many",
        ),
        ({"y": np.inf}, {}, "Column 'y' of df is inf for 'a' at 2026-01-01.*finite numbers"),
        ({"y": "many"}, {}, "Column 'y' of df holds String.*numbers were expected"),
        ({"ds": "yesterday"}, {}, "'yesterday' in column 'ds' of df is no time in ISO form"),
        ({"ds": 0.5}, {}, "Column 'ds' of df holds Float64; times, whole numbers or text"),
        ({}, {"freq": 1}, "holds times, but freq is 1"),
        ({"ds": range(8)}, {"freq": "h"}, "holds whole numbers, but freq is 'h'"),
        ({}, {"freq": "D"}, "row of 'a' at 2026-01-01 01:00:00, between the steps of frequency 'D'"),
        (
            {},
            {"freq": "us"},
            r"5 rows of 'a' between 2026-01-01 and 2026-01-01 05:00:00, which are 18,000,000,001 steps",
        ),
        ({"unique_id": None}, {}, "8 of 8 rows of df have an empty 'unique_id'"),
        ({"unique_id": list("abcdefgh")}, {}, "one row a series; give freq"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    library: str, changes: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    rows = long_frame(**changes)
    with pytest.raises(UserError, match=sentence):
        frame.read(rows if library == "pandas" else pl.from_pandas(rows), **options)


def test_rows_of_another_frequency_are_refused() -> None:
    days = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2026-01-01", periods=11), "y": 1.0})
    with pytest.raises(UserError, match="rows of df are 24 steps of frequency 'h' apart; give the freq"):
        frame.read(days, freq="h")
    assert len(frame.read(days[:3], freq="h").values[0]) == 49


def test_what_is_no_frame() -> None:
    with pytest.raises(UserError, match="df is a list; a pandas or polars DataFrame was expected"):
        frame.read([1, 2])
    with pytest.raises(UserError, match="df has no rows"):
        frame.read(long_frame().head(0))


def test_covariates_are_standardised_by_the_training_rows() -> None:
    table = frame.read(long_frame(price=np.arange(8.0), open=[True] * 8), extra=["open", "price"])
    chosen = Covariates(futr=("open",), hist=("price",)).fitted(table, None, np.array([2, 2]))
    assert chosen.scalers["price"] == (np.mean([0, 1, 5, 6]), np.std([0, 1, 5, 6]))
    assert chosen.scalers["open"] == (1.0, 1.0)
    futr, hist = chosen.of_past(table.extra[0])
    assert futr is not None
    assert hist is not None
    mean, spread = chosen.scalers["price"]
    expected = (np.array([0, 1, mean, 2, 3, 4]) - mean) / spread
    np.testing.assert_allclose(hist[:, 0], expected, rtol=1e-6)
    assert (futr == 0).all()
    assert futr.dtype == hist.dtype == np.float32


def future(library: str, drop: int | None = None) -> Any:
    hours = pd.date_range("2026-01-01 04:00", periods=5, freq="h")
    rows = pd.DataFrame({"unique_id": np.repeat(["a", "b"], 5), "ds": [*hours, *hours], "price": np.arange(10.0)})
    rows = rows.drop(index=[] if drop is None else [drop]).sample(frac=1, random_state=1)
    return rows if library == "pandas" else pl.from_pandas(rows)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_future_covariates_are_found_for_every_step(library: str) -> None:
    table = frame.read(long_frame())
    chosen = Covariates(futr=("price",), scalers={"price": (1.0, 2.0)})
    given = (table.ids, table.end, table.phase, 3, table.frequency, Columns())
    found = chosen.of_future(future(library), *given)
    assert found is not None
    np.testing.assert_allclose(found[:, :, 0] * 2 + 1, [[2, 3, 4], [7, 8, 9]])
    for drop, sentence in (
        (3, "no 'price' of 'a' at 2026-01-01 07:00:00"),
        (9, "no 'price' of 'b' at 2026-01-01 08:00"),
    ):
        with pytest.raises(UserError, match=sentence):
            chosen.of_future(future(library, drop), *given)
    with pytest.raises(UserError, match="knows 'price' ahead; give futr_df"):
        chosen.of_future(None, *given)
    with pytest.raises(UserError, match="futr_df has no rows of 'c'"):
        chosen.of_future(future(library), ["a", "c"], *given[1:])


def test_static_covariates_follow_the_series() -> None:
    chosen = Covariates(static=("size",))
    static = pd.DataFrame({"unique_id": ["b", "a"], "size": [2, 1]})
    held = chosen.read_static(static, ["a", "b"], Columns())
    np.testing.assert_array_equal(held, [[1.0], [2.0]])
    for wrong, sentence in (
        (None, "give static_df"),
        (static.head(1), "static_df lacks 'a'"),
        (pd.concat([static, static]), "'b' more than once"),
        (static.rename(columns={"size": "sizes"}), "no column 'size'; did you mean 'sizes'"),
        (static.assign(size=[np.inf, 1]), "is inf for 'b';"),
    ):
        with pytest.raises(UserError, match=sentence):
            chosen.read_static(wrong, ["a", "b"], Columns())
    with pytest.raises(UserError, match="'size' is named twice"):
        Covariates(futr=("size",), static=("size",))
