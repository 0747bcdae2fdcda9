"""The data modules: what is trained on, what is judged, and the facts that a model is built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from apps.timeseries.columns import NIXTLA, Columns
from apps.timeseries.data import Ett, FakeSeries, ForecastData
from apps.timeseries.embedded import NAMES, load_embedded
from apps.timeseries.files import read_frame, write_frame
from apps.timeseries.frame_data import Csv, Embedded
from apps.timeseries.series import Series
from apps.timeseries.splits import split_ends
from apps.timeseries.windows import Case, EvaluationWindows, TrainingWindows
from core.errors import UserError


def made(data: ForecastData) -> ForecastData:
    data.setup_once()
    return data


def evaluation(data: ForecastData, split: str = "test") -> EvaluationWindows:
    items = getattr(data, f"{split}_set")
    assert isinstance(items, EvaluationWindows)
    return items


def test_parts_follow_each_other_and_end_with_the_series() -> None:
    train, val, test = split_ends(torch.tensor([100, 40, 20]), 10, None, 0.25)
    assert train.tolist() == [65, 20, 20]
    assert val.tolist() == [75, 30, 20]
    assert test.tolist() == [100, 40, 20]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, None), r"data\.val_size is 5, less than one horizon of 10 steps"),
        ((None, -1), r"data\.test_size is -1"),
        ((12.5, None), r"data\.val_size is 12\.5"),
        ((60, 60), "No series is long enough for 10 steps"),
    ],
)
def test_sizes_that_make_no_sense(sizes: tuple[float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_ends(torch.tensor([100, 40]), 10, *sizes)


def test_made_up_series_are_the_same_each_time_and_batches_too() -> None:
    options: dict[str, Any] = {"context": 24, "horizon": 6, "batch_size": 4, "windows_per_epoch": 12, "seed": 5}
    first, again = (next(iter(made(FakeSeries(**options)).train_dataloader())) for _ in range(2))
    assert isinstance(first, Series)
    assert first.values.shape == (4, 30)
    assert torch.equal(first.values, again.values)
    other = next(iter(made(FakeSeries(**{**options, "seed": 6})).train_dataloader()))
    assert not torch.equal(first.values, other.values)


def test_workers_give_the_same_batches() -> None:
    options: dict[str, Any] = {"context": 24, "horizon": 6, "batch_size": 4, "windows_per_epoch": 12}
    here, there = ([b.values for b in made(FakeSeries(num_workers=n, **options)).train_dataloader()] for n in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_facts_are_plain_and_say_what_a_forecaster_needs(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    long_frame.to_csv(tmp_path / "sales.csv", index=False)
    data = made(
        Csv(root=str(tmp_path / "sales.csv"), context=48, horizon=24, futr=["holiday"], hist=["load"], static=["size"])
    )
    facts = data.describe()
    assert facts["freq"] == "h"
    assert facts["season_length"] == [24, 168]
    assert facts["columns"] == {"unique_id": "unique_id", "ds": "ds", "y": "y"}
    assert (facts["futr"], facts["hist"], facts["static"]) == (["holiday"], ["load"], ["size"])
    assert facts["h"] == 24
    assert facts["dataset"] == "sales"
    assert facts["sizes"]["test"] == 2, "west is too short to be judged"
    rows = pd.concat([part.iloc[: len(part) - 48] for _, part in _sorted(long_frame) if len(part) > 72])
    west = long_frame[long_frame["unique_id"] == "west"]
    load = pd.concat([rows, west])["load"]
    assert facts["scalers"]["load"] == pytest.approx([load.mean(), load.std(ddof=0)])
    assert facts["scalers"]["size"] == pytest.approx([np.mean([10, 50, 5]), np.std([10, 50, 5])])


def _sorted(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), part.sort_values("ds")) for name, part in frame.groupby("unique_id")]


def test_a_users_file_in_any_order_gives_its_series(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    long_frame.to_csv(tmp_path / "sales.csv", index=False)
    data = made(Csv(root=str(tmp_path / "sales.csv"), context=48, horizon=24, futr=["holiday"]))
    for number, (name, part) in enumerate(_sorted(long_frame)):
        assert data.panel.names[number] == name
        values, observed = data.panel.series(number)
        truth = part["y"].to_numpy()
        assert torch.equal(observed, torch.from_numpy(~np.isnan(truth)))
        assert values[observed].tolist() == pytest.approx(truth[~np.isnan(truth)].tolist())
    case = evaluation(data)[0]
    assert data.stamps(0, int(case.place[1]), 24)[-1] == np.datetime64("2026-01-14T23")
    assert case.history.futr is not None
    assert case.history.futr.shape == (72, 1)


def test_rows_without_target_at_the_end_are_not_judged(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    ahead = pd.DataFrame(
        {"unique_id": "north", "ds": pd.date_range("2026-01-15", periods=24, freq="h"), "y": np.nan, "holiday": 1.0}
    )
    pd.concat([long_frame, ahead]).to_csv(tmp_path / "sales.csv", index=False)
    data = made(Csv(root=str(tmp_path / "sales.csv"), context=48, horizon=24, futr=["holiday"]))
    assert data.panel.lengths.tolist() == [240, 200, 30]


def test_folders_and_single_series(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    for name, part in _sorted(long_frame):
        part.drop(columns="unique_id").to_csv(tmp_path / f"{name}.csv", index=False)
    data = made(Csv(root=str(tmp_path), context=48, horizon=24))
    assert data.panel.names == ("north", "south", "west")


def test_files_come_back_as_written(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.gz"):
        write_frame(long_frame, tmp_path / "out" / name)
        again = read_frame(tmp_path / "out" / name, NIXTLA)
        pd.testing.assert_frame_equal(again.assign(ds=pd.to_datetime(again["ds"])), long_frame, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.csv", None, "There is no file or folder"),
        ("notes.txt", "hello", "is none of the files that are read here"),
        ("empty.csv", "", "could not be read"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_frame(tmp_path / name, Columns())


def test_mistakes_in_a_frame_are_named(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "sales.csv"
    long_frame.to_csv(path, index=False)
    with pytest.raises(UserError, match="no column 'sice'; did you mean 'size'"):
        made(Csv(root=str(path), context=48, horizon=24, static=["sice"]))
    with pytest.raises(UserError, match="static columns of .* change within series 'north'"):
        made(Csv(root=str(path), context=48, horizon=24, static=["load"]))
    long_frame.assign(y=np.nan).to_csv(path, index=False)
    with pytest.raises(UserError, match="Column 'y' of .* holds no number at all"):
        made(Csv(root=str(path), context=48, horizon=24))


@pytest.mark.parametrize("name", NAMES)
def test_embedded_series(name: str) -> None:
    found = load_embedded(name)
    assert list(found.frame.columns) == ["unique_id", "ds", "y"]
    data = made(Embedded(name=name, context=32, horizon=8))
    facts = data.describe()
    assert facts["season_length"] == [found.season_length]
    assert facts["sizes"]["test"] == 1
    assert facts["source"]


def test_the_demos_series_is_keelings_with_its_gaps() -> None:
    frame = load_embedded("co2").frame
    assert len(frame) == 2284
    assert frame["y"].isna().sum() == 59
    assert frame["y"].iloc[[0, -1]].tolist() == [316.1, 371.5]
    with pytest.raises(UserError, match="no embedded set 'c02'; did you mean 'co2'"):
        Embedded(name="c02").setup()


def test_ett_is_the_official_protocol(shared_data: Callable[[str], Path]) -> None:
    data = made(Ett(root=str(shared_data("ett")), context=672, horizon=96))
    train = data.train_set
    assert isinstance(train, TrainingWindows)
    assert [len(train), len(evaluation(data, "val")), len(evaluation(data))] == [7 * 7873, 7 * 2785, 7 * 2785]
    table = pd.read_csv(shared_data("ett/ETTh1.csv"))["OT"].to_numpy()
    scaled = (table - table[:8640].mean()) / table[:8640].std()
    case = evaluation(data)[len(evaluation(data)) - 1]
    assert isinstance(case, Case)
    assert case.place.tolist() == [6, 14400 - 96]
    assert case.target.tolist() == pytest.approx(scaled[14304:14400].tolist())
    assert case.history.values.tolist() == pytest.approx(scaled[14304 - 672 : 14304].tolist())
    last = train[len(train) - 1]
    assert float(last.values[-1]) == pytest.approx(scaled[8639])


def test_missing_benchmark_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREYLAG_SHARED", raising=False)
    with pytest.raises(UserError, match=r"ETTh2\.csv was looked for nowhere .* data\.root"):
        Ett(name="ETTh2").setup()
    with pytest.raises(UserError, match=r"ETTh2\.csv was looked for in"):
        Ett(name="ETTh2", root=str(tmp_path)).setup()


def test_closed_form_rows_have_no_gaps_and_end_before_the_test(tmp_path: Path) -> None:
    data = made(FakeSeries(context=24, horizon=6, missing=0.2, length=100))
    train, val = data.rows_to_fit(lookback=24)
    for number, (fit, choose) in enumerate(zip(train, val, strict=True)):
        values, observed = data.panel.series(number)
        length = len(values)
        assert (len(fit), len(choose)) == (length - 12, 24 + 6)
        assert not fit[5:].eq(0).any(), "gaps are filled"
        assert torch.equal(fit[observed[: length - 12]], values[: length - 12][observed[: length - 12]])
