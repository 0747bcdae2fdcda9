"""The estimator's promises, on a small model with every kind of covariate, trained for a few steps."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from utilsforecast.processing import backtest_splits

from apps.timeseries import Rimer, TimeseriesPipeline
from apps.timeseries.fitting import KeepBest
from apps.timeseries.model import MODELS
from core.errors import UserError

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 2, "batch_size": 8, "max_steps": 6, "val_check_steps": 3, "accelerator": "cpu",
    "learning_rate": 0.01,
}  # fmt: skip
H = 10
COVARIATES: dict[str, Any] = {
    "futr_exog_list": ["holiday"], "hist_exog_list": ["load"], "stat_exog_list": ["size"],
}  # fmt: skip


def series(length: int, level: float, seed: int) -> np.ndarray:
    steps = np.arange(length)
    return level + 3 * np.sin(2 * np.pi * steps / 24) + np.random.default_rng(seed).normal(0, 0.3, length)


def rows_of(values: dict[str, Any], first: str = "2026-01-05") -> pd.DataFrame:
    """Hourly series that begin together, in a long frame."""
    parts = [
        pd.DataFrame({"unique_id": name, "ds": pd.date_range(first, periods=len(y), freq="h"), "y": y})
        for name, y in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def panel() -> pd.DataFrame:
    """Five series of different lengths, one with a late start and gaps, one shorter than a patch."""
    values = {
        "a": series(200, 10.0, 1), "b": series(150, -500.0, 2), "c": series(97, 0.0, 3), "d": series(60, 2.0, 4),
        "short": series(3, 40.0, 5),
    }  # fmt: skip
    values["d"][:20] = np.nan
    frame = rows_of(values)
    return frame[~frame["ds"].between("2026-01-06 03:00", "2026-01-06 09:00") | (frame["unique_id"] != "b")]


@pytest.fixture(scope="module")
def fitted(panel: pd.DataFrame) -> Rimer:
    """Trained a little, so that nothing in it is zero."""
    return Rimer(H, 64, patch_len=8, **SMALL).fit(panel)


def numbers(forecast: Any) -> np.ndarray:
    """All columns after id and time, (rows, columns)."""
    frame = forecast.to_pandas() if isinstance(forecast, pl.DataFrame) else forecast
    return frame.drop(columns=["unique_id", "ds"]).to_numpy()


def same(found: Any, expected: Any, scale: float = 1.0) -> None:
    """Ids and times equal, numbers to 1e-5 of the series' spread."""
    assert list(found["unique_id"]) == list(expected["unique_id"])
    assert list(found["ds"]) == list(expected["ds"])
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0, atol=1e-5 * scale)


def carried_on(fitted: Rimer, tmp_path: Path) -> Rimer:
    """The same model following nothing."""
    fitted.save(tmp_path)
    found = Rimer.from_pretrained(tmp_path)
    found._live = None
    return found


# ------------------------------------------------------------------------------------------- one history, many ways


@pytest.mark.parametrize("chunk", [1, 7, 24, 61])
def test_updates_equal_the_whole_history(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path, chunk: int) -> None:
    stream = carried_on(fitted, tmp_path)
    times = pd.date_range("2026-01-05", periods=200, freq="h")
    bounds = [times[0], *times[170 if chunk == 1 else chunk :: chunk], times[-1] + pd.Timedelta("1h")]
    for low, high in itertools.pairwise(bounds):
        part = panel[(panel["ds"] >= low) & (panel["ds"] < high)]
        if len(part):
            stream.update(part)
    for options in ({"level": [80]}, {"h": 45}):
        same(stream.predict(**options), fitted.predict(df=panel, **options), scale=10)


def test_fit_then_update_equals_the_whole_history(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    stream = Rimer.load(tmp_path)
    same(stream.predict(), fitted.predict(df=panel))
    more = rows_of({"a": series(13, 10.0, 7)}, "2026-01-13 08:00")
    skipping = rows_of({"c": series(4, 0.0, 8)}, "2026-01-09 20:00")  # 19 steps after its last one
    new = rows_of({"e": series(30, 5.0, 9)})
    for part in (more, skipping, new):
        stream.update(part)
    same(stream.predict(), fitted.predict(df=pd.concat([panel, more, skipping, new])))
    one = stream.predict()[lambda f: f["unique_id"] == "c"]
    assert one["ds"].iloc[0] == pd.Timestamp("2026-01-10 00:00")


def test_update_costs_what_is_new(fitted: Rimer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted.save(tmp_path)
    stream = Rimer.load(tmp_path)
    seen: list[tuple[int, ...]] = []
    model = stream.learned.forecaster
    update = model.update
    monkeypatch.setattr(model, "update", lambda s, v, *rest: seen.append(tuple(v.shape)) or update(s, v, *rest))
    stream.update(rows_of({"a": series(2, 10.0, 7)}, "2026-01-13 08:00"))
    assert sum(rows for rows, _ in seen) == 4  # the streams of a relay
    assert {steps for _, steps in seen} == {2}
    assert stream.predict()["ds"].iloc[0] == pd.Timestamp("2026-01-13 10:00")


def test_forecasts_rest_on_no_more_than_was_trained_on(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    one = panel[panel["unique_id"] == "a"].reset_index(drop=True)
    changed = one.assign(y=one["y"].mask(one.index < 200 - 64, 1e3))
    same(fitted.predict(df=changed), fitted.predict(df=one))
    whole = Rimer.load(tmp_path, input_size=-1)
    assert (whole.predict(df=changed)["Rimer"] != whole.predict(df=one)["Rimer"]).all()
    short = one[:48]
    same(fitted.predict(df=short), whole.predict(df=short))


def test_a_series_alone_and_among_others(fitted: Rimer, panel: pd.DataFrame) -> None:
    together = fitted.predict(df=panel, level=[90])
    for name, part in panel.groupby("unique_id"):
        same(fitted.predict(df=part, level=[90]), together[together["unique_id"] == name])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_size_of_groups_changes_nothing(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path, size: int) -> None:
    fitted.save(tmp_path)
    other = Rimer.load(tmp_path, inference_batch_size=size)
    same(other.predict(df=panel, h=30), fitted.predict(df=panel, h=30))
    other.update(rows_of({"a": [1.0]}, "2026-01-13 08:00"))
    same(other.predict(), Rimer.load(tmp_path).update(rows_of({"a": [1.0]}, "2026-01-13 08:00")).predict())


def test_order_of_rows_and_series_changes_nothing(fitted: Rimer, panel: pd.DataFrame) -> None:
    expected = fitted.predict(df=panel)
    same(fitted.predict(df=panel.sample(frac=1, random_state=1)), expected)
    turned = {"a": "e", "b": "d", "c": "c", "d": "b", "short": "a"}
    renamed = panel.assign(unique_id=panel["unique_id"].map(turned))
    found = fitted.predict(df=renamed)
    back = found.assign(unique_id=found["unique_id"].map({new: old for old, new in turned.items()}))
    same(back.sort_values(["unique_id", "ds"]).reset_index(drop=True), expected)


def test_polars_in_polars_out_and_equal(fitted: Rimer, panel: pd.DataFrame) -> None:
    found = fitted.predict(df=pl.from_pandas(panel), level=[80])
    assert isinstance(found, pl.DataFrame)
    same(found, fitted.predict(df=panel, level=[80]))


def test_training_is_the_same_for_pandas_polars_and_any_order(panel: pd.DataFrame) -> None:
    state = torch.get_rng_state()
    one = Rimer(4, **SMALL).fit(panel).predict()
    assert torch.equal(torch.get_rng_state(), state)
    other = Rimer(4, **SMALL).fit(pl.from_pandas(panel.sample(frac=1, random_state=2))).predict()
    assert isinstance(other, pl.DataFrame)
    np.testing.assert_array_equal(numbers(other), numbers(one))
    third = Rimer(4, random_seed=2, **SMALL).fit(panel).predict()
    assert not np.allclose(numbers(third), numbers(one))


# ------------------------------------------------------------------------------------------------ the future is unseen


def test_rows_to_come_never_change_a_forecast(fitted: Rimer, panel: pd.DataFrame) -> None:
    options: dict[str, Any] = {"n_windows": 3, "step_size": 7, "use_fitted": True, "level": [80]}
    with pytest.warns(UserWarning, match="1 series are too short"):
        one = fitted.cross_validation(panel, **options)
    last = panel.groupby("unique_id")["ds"].transform("max")
    changed = panel.assign(y=panel["y"].mask(panel["ds"] > last - pd.Timedelta(hours=H), 1e6))
    with pytest.warns(UserWarning, match="1 series are too short"):
        other = fitted.cross_validation(changed, **options)
    at_end = one["cutoff"] == one.groupby("unique_id")["cutoff"].transform("max")
    columns = ["Rimer", "Rimer-lo-80", "Rimer-hi-80"]
    np.testing.assert_array_equal(one.loc[at_end, columns], other.loc[at_end, columns])
    assert (other.loc[at_end, "y"] == 1e6).all()


@pytest.mark.filterwarnings("ignore:.*too short")
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_cross_validation_is_prediction_at_utilsforecasts_cutoffs(
    fitted: Rimer, panel: pd.DataFrame, library: str
) -> None:
    given: Any = panel if library == "pandas" else pl.from_pandas(panel)
    found = fitted.cross_validation(given, n_windows=3, step_size=7, use_fitted=True, quantiles=[0.3])
    assert isinstance(found, type(given))
    found = found.to_pandas() if library == "polars" else found
    assert list(found.columns) == ["unique_id", "ds", "cutoff", "y", "Rimer", "Rimer_ql0.3"]
    expected = []
    for cutoffs, train, valid in backtest_splits(panel, 3, H, "unique_id", "ds", "h", step_size=7):
        forecast = fitted.predict(df=train, quantiles=[0.3]).merge(cutoffs, on="unique_id")
        forecast = forecast.merge(valid, how="left", on=["unique_id", "ds"])
        expected.append(forecast[forecast["unique_id"] != "short"])
    peer = pd.concat(expected)[list(found.columns)].sort_values(["unique_id", "cutoff", "ds"]).reset_index(drop=True)
    assert found[["unique_id", "ds", "cutoff"]].equals(peer[["unique_id", "ds", "cutoff"]])
    np.testing.assert_array_equal(found["y"], peer["y"])
    np.testing.assert_allclose(found[["Rimer", "Rimer_ql0.3"]], peer[["Rimer", "Rimer_ql0.3"]], rtol=0, atol=1e-5)


def test_cross_validation_trains_before_the_first_cutoff(panel: pd.DataFrame) -> None:
    rows = panel[panel["unique_id"].isin(["a", "c"])]
    model = Rimer(5, **SMALL)
    once = model.cross_validation(rows, n_windows=3, step_size=5)
    last = rows.groupby("unique_id")["ds"].transform("max")
    before = Rimer(5, **SMALL).fit(rows[rows["ds"] <= last - pd.Timedelta(hours=15)]).predict()
    first = once[once["cutoff"] == once.groupby("unique_id")["cutoff"].transform("min")]
    np.testing.assert_allclose(first["Rimer"], before["Rimer"], rtol=0, atol=1e-5)
    again = model.cross_validation(rows, n_windows=3, step_size=5, refit=2)
    third = again["cutoff"] == again.groupby("unique_id")["cutoff"].transform("max")
    np.testing.assert_array_equal(again.loc[~third, "Rimer"], once.loc[~third, "Rimer"])
    assert (again.loc[third, "Rimer"] != once.loc[third, "Rimer"]).all()
    with pytest.raises(UserError, match="knows nothing yet"):
        model.predict()


# --------------------------------------------------------------------------------------------------- any horizon, level


def test_any_horizon(fitted: Rimer, panel: pd.DataFrame) -> None:
    far = fitted.predict(df=panel, h=75, level=[50])
    assert far.groupby("unique_id").size().eq(75).all()
    assert np.isfinite(numbers(far)).all()
    for h in (1, H, 16, 33):
        near = fitted.predict(df=panel, h=h, level=[50])
        same(near, far.groupby("unique_id").head(h), scale=10)


def test_quantiles_never_cross_at_any_level(fitted: Rimer, panel: pd.DataFrame) -> None:
    asked = np.linspace(0.01, 0.99, 197).round(6).tolist()
    odd = rows_of({"same": [7.0] * 40, "jump": [0.0] * 39 + [1e9], "tiny": series(40, 1e-9, 1) * 1e-12})
    for rows in (panel, odd):
        found = fitted.predict(df=rows, h=40, quantiles=asked)
        spread = np.diff(numbers(found)[:, 1:], axis=1)
        assert (spread >= 0).all()
    intervals = fitted.predict(df=panel, level=[98, 50.5, 90])
    names = ["Rimer-lo-98", "Rimer-lo-90", "Rimer-lo-50.5", "Rimer", "Rimer-hi-50.5", "Rimer-hi-90", "Rimer-hi-98"]
    assert (np.diff(intervals[names].to_numpy(), axis=1) >= 0).all()


def test_mean_or_median(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    median = fitted.predict(df=panel, quantiles=[0.5])
    np.testing.assert_array_equal(median["Rimer"], median["Rimer_ql0.5"])
    mean = Rimer.load(tmp_path, point="mean", alias="Goose").predict(df=panel, quantiles=np.linspace(0.01, 0.99, 99))
    by_hand = mean.filter(like="_ql").mean(axis=1)
    spread = mean["Goose_ql0.99"] - mean["Goose_ql0.01"]
    assert ((mean["Goose"] - by_hand).abs() < 0.01 * spread).all()


# ------------------------------------------------------------------------------------------------------- odd series


def test_odd_series_among_others(fitted: Rimer, panel: pd.DataFrame) -> None:
    odd = rows_of({
        "constant": [5.0] * 50, "zeros": [0.0] * 50, "nothing": [np.nan] * 50, "one": [3.0],
        "late": [np.nan] * 40 + [1.0, 2.0], "large": series(50, 1e12, 3) * 1e3, "over": [1.0, np.nan] * 20,
        "ends missing": [*series(30, 0.0, 4), *[np.nan] * 25],
    })  # fmt: skip
    found = fitted.predict(df=odd, level=[80])
    values = numbers(found)
    missing = (found["unique_id"] == "nothing").to_numpy()
    assert np.isnan(values[missing]).all()
    assert np.isfinite(values[~missing]).all()
    for name, level in (("constant", 5.0), ("zeros", 0.0)):
        np.testing.assert_allclose(values[found["unique_id"] == name], level, rtol=1e-3, atol=1e-9)
    both = fitted.predict(df=pd.concat([panel, odd]), level=[80])
    same(both[both["unique_id"].isin(panel["unique_id"])], fitted.predict(df=panel, level=[80]))


def test_rows_left_out_are_missing_values(fitted: Rimer, panel: pd.DataFrame) -> None:
    one = panel[panel["unique_id"] == "a"].reset_index(drop=True)
    same(
        fitted.predict(df=one.drop(index=range(50, 90))),
        fitted.predict(df=one.assign(y=one["y"].mask(one.index.isin(range(50, 90))))),
    )


def test_units_do_not_matter(fitted: Rimer, panel: pd.DataFrame) -> None:
    one = panel[panel["unique_id"].isin(["a", "c"])]
    other = fitted.predict(df=one.assign(y=one["y"] * 1000 + 77))
    np.testing.assert_allclose(other["Rimer"], fitted.predict(df=one)["Rimer"] * 1000 + 77, rtol=1e-5, atol=0.01)


# --------------------------------------------------------------------------------------------------------- covariates


@pytest.fixture(scope="module")
def beside() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """History, future and static frames of a series that is its price, doubled, on a level of its own."""
    rng, parts = np.random.default_rng(3), []
    for name, length, size in (("a", 300, 1.0), ("b", 250, 4.0)):
        price = rng.normal(0, 1, length + 40)
        times = pd.date_range("2026-01-05", periods=length + 40, freq="h")
        y = 20 * size + 2 * price + rng.normal(0, 0.05, length + 40)
        y[length:] = np.nan
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": y, "holiday": price, "load": price > 0}))
    rows = pd.concat(parts, ignore_index=True)
    static = pd.DataFrame({"unique_id": ["b", "a"], "size": [4.0, 1.0]})
    past = rows["y"].notna()
    return rows[past], rows.loc[~past, ["unique_id", "ds", "holiday"]], static


@pytest.fixture(scope="module")
def informed(beside: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> Rimer:
    """Trained with all kinds of covariates until it has understood the price."""
    options = {**SMALL, "max_steps": 40, "learning_rate": 0.03}
    return Rimer(H, 32, patch_len=8, **COVARIATES, **options).fit(beside[0], static_df=beside[2])


def test_what_is_known_ahead_is_used(informed: Rimer, beside: Any) -> None:
    found = informed.predict(futr_df=beside[1])
    truth = beside[1].merge(found, on=["unique_id", "ds"])
    level = np.where(truth["unique_id"] == "a", 20.0, 80.0)
    error = (truth["Rimer"] - level - 2 * truth["holiday"]).abs().mean()
    assert error < 0.5 * (2 * truth["holiday"]).abs().mean()


def test_covariates_stream_as_values_do(informed: Rimer, beside: Any, tmp_path: Path) -> None:
    rows, future, static = beside
    stream = carried_on(informed, tmp_path)
    cuts = [*pd.date_range("2026-01-05", periods=9, freq="37h"), rows["ds"].max() + pd.Timedelta("1h")]
    for low, high in itertools.pairwise(cuts):
        part = rows[(rows["ds"] >= low) & (rows["ds"] < high)]
        if len(part):
            stream.update(part, static_df=static)
    for h in (1, H, 30):
        same(stream.predict(futr_df=future, h=h), informed.predict(futr_df=future, h=h), scale=5)
        same(informed.predict(df=rows, static_df=static, futr_df=future, h=h), informed.predict(futr_df=future, h=h))
    shuffled = future.sample(frac=1, random_state=0).assign(more=1)
    same(informed.predict(futr_df=pl.from_pandas(shuffled)), informed.predict(futr_df=future))


def test_cross_validation_takes_the_future_from_the_frame(informed: Rimer, beside: Any) -> None:
    rows, _, static = beside
    found = informed.cross_validation(rows, n_windows=2, step_size=3, use_fitted=True, static_df=static)
    last = rows.groupby("unique_id")["ds"].transform("max")
    past = rows["ds"] <= last - pd.Timedelta(hours=H)
    expected = informed.predict(df=rows[past], static_df=static, futr_df=rows[~past].drop(columns="y"))
    at_end = found["cutoff"] == found.groupby("unique_id")["cutoff"].transform("max")
    np.testing.assert_allclose(found.loc[at_end, "Rimer"], expected["Rimer"], rtol=0, atol=1e-4)


def test_missing_covariates_are_asked_for(informed: Rimer, beside: Any) -> None:
    rows, future, _ = beside
    for call, sentence in (
        (lambda: informed.predict(), "give futr_df"),
        (lambda: informed.predict(futr_df=future, h=41), "no 'holiday' of 'b' at .* every one of the 41 steps"),
        (lambda: informed.predict(df=rows, futr_df=future), "give static_df"),
        (lambda: informed.predict(df=rows.drop(columns="load"), futr_df=future), "df has no column 'load'"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()


# ------------------------------------------------------------------------------------------------------ keeping, names


def test_saved_folder_is_a_pipelines_and_holds_no_code(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data"]["freq"] == "h"
    assert config["data"]["season_length"] == [24, 168]
    pipeline = TimeseriesPipeline.from_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(held[name], tensor.cpu()) for name, tensor in pipeline.model.state_dict().items())
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors", ".md"}
    loaded = Rimer.load(tmp_path)
    np.testing.assert_array_equal(numbers(loaded.predict(level=[80])), numbers(fitted.predict(level=[80])))
    loaded.save(tmp_path)
    np.testing.assert_array_equal(numbers(Rimer.load(tmp_path).predict()), numbers(fitted.predict()))


def test_zero_shot_on_other_frames(fitted: Rimer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    model = Rimer.from_pretrained(tmp_path, freq="MS", id_col="shop", time_col="month", target_col="sold", h=3)
    months = pd.date_range("2020-01-31", periods=30, freq="ME")
    frame = pd.DataFrame({"shop": 5, "month": months, "sold": np.arange(30) % 12})
    found = model.predict(df=frame, level=[80])
    assert list(found.columns) == ["shop", "month", "Rimer", "Rimer-lo-80", "Rimer-hi-80"]
    assert found["month"].astype(str).tolist() == ["2022-07-31", "2022-08-31", "2022-09-30"]
    assert model.learned.nothing_followed(model.learned.frequency).seasons == (12, 0)
    assert model.fit(frame, id_col="shop", time_col="month", target_col="sold").predict().shape == (3, 3)


def test_fit_goes_on_from_the_weights_that_are_there(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "h": 4}
    days = rows_of({"x": series(50, 5.0, 1)})
    days["ds"] = pd.date_range("2026-01-01", periods=50)
    model = Rimer.from_pretrained(tmp_path, freq="D", **still).fit(days)
    same(model.predict(), Rimer.from_pretrained(tmp_path, freq="D").predict(df=days, h=4))
    assert model.learned.seasons(model.learned.frequency) == (7,)
    before = fitted.learned.forecaster.state_dict()
    moved = Rimer.from_pretrained(tmp_path).fit(panel).learned.forecaster.state_dict()
    fresh = Rimer.from_pretrained(tmp_path).fit(panel, use_init_models=True).learned.forecaster.state_dict()
    assert all(torch.equal(fresh[name], before[name]) for name in before)
    assert not all(torch.equal(moved[name], before[name]) for name in before)


def test_zones_survive_saving(tmp_path: Path) -> None:
    frame = rows_of({"x": series(60, 0.0, 1)})
    frame["ds"] = frame["ds"].dt.tz_localize("Europe/Vienna")
    model = Rimer(3, **SMALL).fit(frame)
    model.save(tmp_path)
    assert Rimer.load(tmp_path).predict()["ds"].equals(model.predict()["ds"])
    assert str(model.predict()["ds"].dt.tz) == "Europe/Vienna"


def test_arguments_are_called_as_neuralforecasts() -> None:
    """Names of neuralforecast 3.3: models' constructors, NeuralForecast.fit, predict and cross_validation."""
    made = inspect.signature(Rimer).parameters
    assert {
        "h", "input_size", "futr_exog_list", "hist_exog_list", "stat_exog_list", "max_steps", "learning_rate",
        "early_stop_patience_steps", "val_check_steps", "batch_size", "random_seed", "alias", "loss", "patch_len",
        "hidden_size", "dropout",
    } <= set(made)  # fmt: skip
    fit = list(inspect.signature(Rimer.fit).parameters)
    assert {"df", "static_df", "val_size", "id_col", "time_col", "target_col"} <= set(fit)
    assert list(inspect.signature(Rimer.predict).parameters)[1:4] == ["df", "static_df", "futr_df"]
    assert {"level", "quantiles", "h"} <= set(inspect.signature(Rimer.predict).parameters)
    assert {"n_windows", "step_size", "val_size", "refit", "use_fitted", "h", "level", "quantiles", "static_df"} <= set(
        inspect.signature(Rimer.cross_validation).parameters
    )


# ----------------------------------------------------------------------------------------------------- other models


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_goes_through_the_estimator(name: str, panel: pd.DataFrame, tmp_path: Path) -> None:
    model = Rimer(H, 48, model=name, alias="Twin", **SMALL).fit(panel, val_size=12)
    found = model.predict()
    assert list(found.columns) == ["unique_id", "ds", "Twin"]
    assert np.isfinite(numbers(found)).all()
    same(model.predict(df=panel.sample(frac=1, random_state=1)), found)
    model.save(tmp_path)
    more = rows_of({"a": series(13, 10.0, 7)}, "2026-01-13 08:00")
    expected = model.predict(df=pd.concat([panel, more]), h=25)
    same(Rimer.load(tmp_path).update(more).predict(h=25), expected)


@pytest.mark.parametrize(
    "options",
    [{"mixer": "attention"}, {"norm": "window"}, {"loss": "mae"}, {"ridge": True}, {"norm_halflife": 30.0}],
    ids=str,
)
def test_options_of_the_model(panel: pd.DataFrame, options: dict[str, Any]) -> None:
    model = Rimer(H, 40, **options, **SMALL).fit(panel)
    same(model.predict(df=panel[panel["unique_id"] == "a"], h=20), model.predict(h=20)[:20])
    if options == {"loss": "mae"}:
        with pytest.raises(UserError, match="forecasts points alone"):
            model.predict(level=[80])


def test_validation_is_run(panel: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[KeepBest] = []
    whole = KeepBest.__init__
    monkeypatch.setattr(KeepBest, "__init__", lambda self, patience: seen.append(self) or whole(self, patience))
    model = Rimer(H, 40, **SMALL).fit(panel, val_size=20)
    assert seen[0].weights is not None
    assert math.isfinite(seen[0].best)
    held = model.learned.forecaster.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in seen[0].weights.items())
