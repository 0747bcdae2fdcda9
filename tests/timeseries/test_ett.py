"""ETT's official splits and windows, the harness against published rows, and what is said of broken files."""

from __future__ import annotations

import gzip
import re
from datetime import date
from pathlib import Path

import pytest
import torch

from apps.timeseries.ett import LongSet, read_long, windows
from core.errors import UserError

FILES = {"ETTh1": "ett/ETTh1.csv", "ETTm1": "ett/ETTm1.csv.gz"}


@pytest.fixture(scope="module")
def h1(shared_data) -> LongSet:
    return read_long(shared_data(FILES["ETTh1"]))


def errors(table: LongSet, guess, horizon: int = 96) -> tuple[float, float]:
    found = windows(table.scaled, table.origins("test", 672, horizon), 672, horizon)
    off = guess(found[..., :672]) - found[..., 672:]
    return float(off.square().mean()), float(off.abs().mean())


@pytest.mark.parametrize(
    ("name", "rows", "counts"),
    [("ETTh1", 14400, (2785, 2689, 2545, 2161)), ("ETTm1", 57600, (11425, 11329, 11185, 10801))],
)
def test_no_window_is_dropped(shared_data, name, rows, counts):
    table = read_long(shared_data(FILES[name]))
    assert table.values.shape == (rows, 7)
    assert table.borders == (rows * 8640 // 14400, rows * 11520 // 14400, rows)
    for split in ("val", "test"):
        assert tuple(len(table.origins(split, 672, h)) for h in (96, 192, 336, 720)) == counts
    train = table.origins("train", 672, 96)
    assert (int(train[0]), int(train[-1])) == (672, table.borders[0] - 96)


def test_the_scaler_sees_training_rows_alone(h1):
    train = h1.scaled[:8640]
    assert train.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(train.square().mean(0), torch.ones(7, dtype=torch.float64))
    assert h1.scaled[8640:].mean(0).abs().max() > 0.1


def test_last_value_gives_the_published_row(h1):
    mse, mae = errors(h1, lambda x: x[..., -1:])  # TSLib's "Repeat": 1.294 / 0.713
    assert (mse, mae) == pytest.approx((1.2944, 0.7132), abs=5e-5)


def test_last_day(h1):
    mse, mae = errors(h1, lambda x: x[..., -24:].repeat(1, 1, 4))
    assert (mse, mae) == pytest.approx((0.5122, 0.4333), abs=5e-5)


def test_windows_lie_where_they_should(h1):
    found = windows(h1.scaled, torch.tensor([672, 5000]), 672, 3)
    torch.testing.assert_close(found[1, 2], h1.scaled[5000 - 672 : 5003, 2], rtol=0, atol=0)
    assert found.shape == (2, 7, 675)


def test_clock(h1):
    assert (h1.minutes, h1.periods) == (60, (24, 168))
    assert h1.start == 24 * (date(2016, 7, 1) - date(1970, 1, 1)).days
    assert h1.channels[-1] == "OT"


# ----------------------------------------------------------------------------------------------------- other files


def text(rows: int, step: int = 60) -> list[str]:
    dates = [f"2020-01-{1 + i * step // 1440:02}T{i * step // 60 % 24:02}:{i * step % 60:02}" for i in range(rows)]
    return ["date,a,b", *(f"{date},{i},7" for i, date in enumerate(dates))]


def written(folder: Path, lines: list[str], name: str = "some.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_other_sets_are_cut_by_shares(tmp_path):
    table = read_long(written(tmp_path, text(103)))
    assert table.borders == (72, 83, 103)  # int(72.1), what is left, int(20.6)
    assert table.std[1] == 1.0  # a constant channel
    assert len(table.origins("test", 24, 5)) == 16
    with pytest.raises(UserError, match="no val window of 24 input and 12 target steps"):
        table.origins("val", 24, 12)
    with pytest.raises(UserError, match="no split 'training'; choose one of train, val, test"):
        table.rows("training")


def changed(lines: list[str], at: int, line: str) -> list[str]:
    return [*lines[:at], line, *lines[at + 1 :]]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([""], "is empty; expected a header"),
        (["time,a", "2020-01-01,1"], "has 1 rows and the columns time, a; expected 'date'"),
        (["date,a"], "has 0 rows"),
        (changed(text(50), 3, "2020-01-01T02:00,x,7"), "column 'a', row 3: 'x' is no finite number"),
        (changed(text(50), 3, "2020-01-01T02:00,,7"), "column 'a', row 3: 'nan' is no finite number"),
        (changed(text(50), 3, "2020-01-01T02:00,inf,7"), "column 'a', row 3: 'inf'"),
        (changed(text(50), 3, "yesterday,2,7"), "has a date that is none"),
        (changed(text(50), 3, "2020-01-01T01:00,2,7"), "is not regular: 2020-01-01T01:00:00 follows"),
        (["date,a", "2020-01-02,1", "2020-01-01,1"], "in order of time"),
        (text(3), "3 rows, too few to split"),
    ],
)
def test_broken_files_are_told_in_a_sentence(tmp_path, lines, says):
    path = written(tmp_path, lines)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_long(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_long(tmp_path / "none.csv")
    packed = gzip.compress("\n".join(text(500)).encode())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "plain.csv.gz").write_text("\n".join(text(50)))
    for name in ("cut.csv.gz", "plain.csv.gz"):
        with pytest.raises(UserError, match="could not be read as CSV"):
            read_long(tmp_path / name)


def test_ett_needs_its_months(tmp_path):
    with pytest.raises(UserError, match="the ETT splits need 600 days, 14400 rows"):
        read_long(written(tmp_path, text(100), "ETTh9.csv"))
    assert read_long(written(tmp_path, text(100), "ETTh9.csv"), official=False).borders[-1] == 100
