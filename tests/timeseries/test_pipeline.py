"""The pipeline: files in, forecasts out; the same answers as the estimator's, and graphs for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from apps.timeseries import Rimer, TimeseriesPipeline
from apps.timeseries.columns import NIXTLA
from apps.timeseries.head import LEVELS
from apps.timeseries.model import build_model
from apps.timeseries.parts import is_ahead
from core.errors import UserError
from core.wkv import use_backend

MODEL = {"name": "rimer", "patch_len": 8, "output_len": 24, "dim": 16, "num_layers": 1, "head_dim": 8, "max_period": 24}


def pipeline(model: dict[str, Any] | None = None, **data: Any) -> TimeseriesPipeline:
    torch.manual_seed(0)
    options = {**MODEL, **(model or {})}
    facts = {
        "freq": "h", "season_length": [24, 168], "columns": NIXTLA._asdict(), "futr": [], "hist": [], "static": [],
        "scalers": {}, "h": 24, "context": 96, **data,
    }  # fmt: skip
    built = build_model(options)
    for parameter in built.parameters():  # a fresh head predicts the naive paths alone
        torch.nn.init.normal_(parameter, std=0.1)
    return TimeseriesPipeline(built, {"app": "timeseries", "name": "test", "model": options, "data": facts})


@pytest.fixture
def pipe() -> TimeseriesPipeline:
    return pipeline()


@pytest.fixture
def sales(long_frame: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "sales.csv"
    long_frame.drop(columns=["holiday", "load", "size"]).to_csv(path, index=False)
    return path


def test_a_frame_gives_the_estimators_forecast(pipe: TimeseriesPipeline, long_frame: pd.DataFrame) -> None:
    found = pipe(long_frame, h=30, level=[80])
    assert list(found.columns) == ["unique_id", "ds", "Rimer", "Rimer-lo-80", "Rimer-hi-80"]
    assert found.groupby("unique_id").size().tolist() == [30, 30, 30]
    assert (found["Rimer-lo-80"] < found["Rimer"]).all()
    expected = Rimer.of(pipe.model, pipe.config).predict(long_frame, h=30, level=[80])
    pd.testing.assert_frame_equal(found, expected)


def test_a_folder_gives_the_same_forecast(pipe: TimeseriesPipeline, long_frame: pd.DataFrame, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    again = TimeseriesPipeline.from_pretrained(tmp_path / "model", device="cpu")
    pd.testing.assert_frame_equal(again(long_frame), pipe(long_frame))
    pd.testing.assert_frame_equal(Rimer.load(tmp_path / "model", device="cpu").predict(long_frame), pipe(long_frame))


def test_files_in_files_out(pipe: TimeseriesPipeline, sales: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "forecast.csv"
    picture = tmp_path / "out" / "forecast.png"
    assert pipe.predict_files(str(sales), target, h=12, plot=str(picture)) == 0
    found = pd.read_csv(target, parse_dates=["ds"])
    expected = pipe(pd.read_csv(sales), h=12, level=[80, 95])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-8)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_an_output_csv_is_printed(
    pipe: TimeseriesPipeline, sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.predict_files(str(sales), h=2, quantiles=[0.1, 0.9])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unique_id,ds,Rimer,Rimer_ql0.1,Rimer_ql0.9"
    assert len(lines) == 1 + 3 * 2


def test_how_much_history_counts_can_be_said(pipe: TimeseriesPipeline, sales: Path, tmp_path: Path) -> None:
    whole = pd.read_csv(sales)
    for context, options in ((None, {}), (-1, {"input_size": -1}), (48, {"input_size": 48})):
        pipe.predict_files(str(sales), tmp_path / "a.csv", context=context)
        expected = Rimer.of(pipe.model, pipe.config, **options).predict(whole)["Rimer"]
        assert pd.read_csv(tmp_path / "a.csv")["Rimer"].tolist() == pytest.approx(expected.tolist(), rel=1e-8)


def test_rows_after_the_last_value_are_the_steps_to_forecast(
    pipe: TimeseriesPipeline, long_frame: pd.DataFrame
) -> None:
    ahead = pd.DataFrame({"unique_id": "north", "ds": pd.date_range("2026-01-15", periods=5, freq="h"), "y": np.nan})
    frame = pd.concat([ahead, long_frame]).reset_index(drop=True)
    found = is_ahead(frame, NIXTLA)
    assert found.sum() == 5
    assert found[:5].all(), "the gap inside the series is none of them"
    text = frame.assign(ds=frame["ds"].astype(str))
    assert is_ahead(text, NIXTLA).equals(found)
    empty = frame.assign(y=np.nan)
    assert not is_ahead(empty, NIXTLA).any()


def test_covariates_known_ahead_stand_in_the_same_file(long_frame: pd.DataFrame, tmp_path: Path) -> None:
    scalers = {"holiday": [0.1, 0.3], "size": [20.0, 10.0]}
    pipe = pipeline({"n_futr": 1, "n_static": 1}, futr=["holiday"], static=["size"], scalers=scalers)
    ends = long_frame.groupby("unique_id")["ds"].max()
    sizes = long_frame.groupby("unique_id")["size"].first()

    def with_holidays(value: float) -> list[float]:
        rows = [
            pd.DataFrame({"unique_id": name, "ds": pd.date_range(end, periods=25, freq="h")[1:], "y": np.nan,
                          "holiday": value, "size": sizes[name]})
            for name, end in ends.items()
        ]  # fmt: skip
        pd.concat([long_frame, *rows]).to_csv(tmp_path / "x.csv", index=False)
        pipe.predict_files(str(tmp_path / "x.csv"), tmp_path / "y.csv")
        found = pd.read_csv(tmp_path / "y.csv", parse_dates=["ds"])
        assert found["ds"].min() == ends.min() + pd.Timedelta("1h")
        return found["Rimer"].tolist()

    usual, holidays = with_holidays(0.0), with_holidays(1.0)
    assert usual != pytest.approx(holidays, rel=1e-4)
    long_frame.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match=r"^'.*x\.csv' has no 'holiday' of 'west' at"):
        pipe.predict_files(str(tmp_path / "x.csv"), tmp_path / "y.csv")


def test_other_names_of_columns(pipe: TimeseriesPipeline, sales: Path, tmp_path: Path) -> None:
    renamed = pd.read_csv(sales).rename(columns={"unique_id": "shop", "ds": "time", "y": "sold"})
    renamed.to_csv(tmp_path / "shops.csv", index=False)
    pipe.predict_files(
        str(tmp_path / "shops.csv"), tmp_path / "a.csv", id_col="shop", time_col="time", target_col="sold"
    )
    pipe.predict_files(str(sales), tmp_path / "b.csv")
    found, expected = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    assert list(found.columns)[:2] == ["shop", "time"]
    assert found["Rimer"].tolist() == expected["Rimer"].tolist()
    with pytest.raises(UserError, match="but no 'unique_id'; name yours with id_col="):
        pipe.predict_files(str(tmp_path / "shops.csv"))


def test_mistakes_are_told_in_a_sentence(pipe: TimeseriesPipeline, sales: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no option 'levels'; did you mean 'level'"):
        pipe.predict_files(str(sales), levels=[80])
    with pytest.raises(UserError, match="expected a file that ends in"):
        pipe.predict_files(str(sales), tmp_path / "forecast.xlsx")
    with pytest.raises(UserError, match="There is no file or folder"):
        pipe.predict_files("nowhere.csv")
    twice = pd.concat([pd.read_csv(sales)] * 2)
    twice.to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(UserError, match=r"^'.*twice\.csv' has several rows of 'north' at"):
        pipe.predict_files(str(tmp_path / "twice.csv"))
    with pytest.raises(UserError, match=r"plot=.*tiger"):
        pipe.predict_files(str(sales), tmp_path / "a.csv", plot=str(tmp_path / "a.tiger"))
    with pytest.raises(UserError, match=r"config\.json has no 'model'"):
        TimeseriesPipeline.build_model({"app": "timeseries"})


def test_point_forecasters_have_no_intervals(sales: Path, tmp_path: Path) -> None:
    pipe = pipeline({"quantiles": []})
    pipe.predict_files(str(sales), tmp_path / "a.csv", plot=str(tmp_path / "a.png"))
    assert list(pd.read_csv(tmp_path / "a.csv").columns) == ["unique_id", "ds", "Rimer"]


def test_the_graph_gives_the_models_forecast(pipe: TimeseriesPipeline, long_frame: pd.DataFrame) -> None:
    part = long_frame[long_frame["unique_id"] == "north"].sort_values("ds")
    expected = pipe(part, h=24, quantiles=list(LEVELS), input_size=-1)
    table = Rimer.of(pipe.model, pipe.config).learned.read(part)
    values = torch.from_numpy(table.values[0])[None]
    assert values.shape[1] % 8 == 0
    found = pipe.graph()(values, torch.from_numpy(table.start)).detach()
    torch.testing.assert_close(found[0].numpy(), expected.to_numpy()[:, 3:].astype(float), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_graph_can_be_exported() -> None:
    pipe = pipeline({"patch_len": 24}, context=48)
    graph = pipe.graph()
    with torch.no_grad(), use_backend("reference"):
        shapes = tuple({0: torch.export.Dim.AUTO} for _ in range(2))
        program = torch.export.export(graph, pipe.example_inputs(), dynamic_shapes=shapes)
    values = torch.randn(3, 48)
    values[0, 5] = torch.nan
    start = torch.tensor([3, 0, 7])
    torch.testing.assert_close(program.module()(values, start), graph(values, start), rtol=1e-4, atol=1e-4)


def test_covariates_cannot_be_exported() -> None:
    with pytest.raises(UserError, match="with covariates cannot be exported as a graph"):
        pipeline({"n_futr": 1}, futr=["holiday"], scalers={"holiday": [0, 1]}).graph()
