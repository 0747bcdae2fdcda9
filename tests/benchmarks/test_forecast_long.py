"""The long-horizon study, in small: errors against plain loops, equal parameters, going on, tables from lines alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apps.timeseries.ett import LongSet, read_long
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.model import build_model
from benchmarks import forecast_control, forecast_tables, forecast_training
from benchmarks import forecast_long as benchmark
from benchmarks.forecast_long import DLINEAR, MODELS, RWKV, SETS, TWIN, TWIN_TIME, Key, Setting
from benchmarks.forecast_tables import BARS, mean_and_spread
from benchmarks.forecast_training import ALONE, HORIZONS, MEAN, Forecasts, by_model, errors, kinds, last_value, only
from benchmarks.study import LINES
from benchmarks.vision_training import configuration

SETTING = Setting(10, 8, 1e-3, 1.5, "data", ())


def found(scale: float = 1.0) -> dict[str, dict[str, tuple[float, float]]]:
    return {kind: {str(h): (scale * h / 1000, scale * h / 500) for h in HORIZONS} for kind in (ALONE, MEAN)}


def outcome(value: float = 0.4) -> Forecasts:
    return Forecasts("ETTh1", {"train": 9}, value, value, 0.3, 10, 1.5, 1234, found(value), found(value))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LongSet:
    """A small set, cut 70/10/20, and a shorter input."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(300) * 2 * np.pi / 24)[:, None] * [1, 2] + 0.3 * rng.standard_normal((300, 2))
    dates = np.datetime64("2020-01-01") + np.arange(300) * np.timedelta64(1, "h")
    lines = ["date,a,OT", *(f"{date},{a},{b}" for date, (a, b) in zip(dates, waves, strict=True))]
    (tmp_path / "waves.csv").write_text("\n".join(lines))
    monkeypatch.setattr(forecast_training, "INPUT_LEN", 48)
    return read_long(tmp_path / "waves.csv")


# ---------------------------------------------------------------------------------------------------------- errors


def test_errors_are_means_over_every_window(table):
    result = errors(only(last_value), table, "test", horizons=(4, 10), rows=7)
    scaled, (first, end) = table.scaled.numpy(), table.rows("test")
    for h in (4, 10):
        off = np.stack([scaled[o - 1] - scaled[o : o + h] for o in range(first, end - h + 1)])
        assert result[ALONE][str(h)] == pytest.approx((np.square(off).mean(), np.abs(off).mean()))


def test_strides_keep_the_first_window(table):
    seen: list[int] = []

    def guess(values, first, h):
        seen.extend(first.tolist())
        return values[:, -1:].expand(-1, h)

    errors(only(guess), table, "val", stride=5, horizons=(4,))
    assert sorted(set(seen)) == list(range(210 - 48, 240 - 4 + 1 - 48, 5))


def test_forecasts_are_those_of_the_model(table):
    model = build_model({"name": "dlinear", "input_len": 48, "output_len": 6, "kernel": 5}).eval()
    values = table.scaled.T[:, :48]
    ahead = by_model(model, table)(values, torch.zeros(2, dtype=torch.int64), 10)
    assert ahead.shape == (2, 10)
    again = by_model(model, table)(torch.cat((values, ahead[:, :6]), 1)[:, 6:], torch.full((2,), 6), 4)
    torch.testing.assert_close(ahead[:, 6:], again)  # fed back


def test_the_mean_is_half_and_half(table):
    ridges = forecast_training.fit_ridges(table, (4,))
    model = build_model({"name": "seasonal_naive", "input_len": 48, "output_len": 4}).eval()
    assert isinstance(model, Forecaster)
    values = table.scaled.T[:, 100:148]
    result = kinds(model, table, ridges)(values, torch.tensor([100, 100]), (4,))
    expected = (values[:, 24:28] + ridges[4].predict(values)) / 2
    torch.testing.assert_close(result[f"{MEAN} 4"], expected, rtol=1e-5, atol=1e-5)


def test_copying_scores_well_under_the_published_protocol(shared_data):
    rows = forecast_control.control(read_long(shared_data("ett/ETTm1.csv.gz")))
    copying = rows["shuffled rows, all windows"]
    assert copying["R2"] == pytest.approx(31 / 32, abs=0.01)
    assert abs(rows["shuffled rows, the one step that is not in the input"]["R2"]) < 0.1


# -------------------------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("dataset", SETS)
def test_mixers_have_equal_parameters_and_one_recipe(dataset):
    configs = {model: configuration(SETTING.words(Key(dataset, model, 3))) for model in MODELS}
    count = {model: sum(p.numel() for p in build_model(configs[model]["model"]).parameters()) for model in (RWKV, TWIN)}
    assert count[TWIN] == pytest.approx(count[RWKV], rel=0.01)
    for part in ("optim", "task", "data", "ema", "seed"):
        assert configs[RWKV][part] == configs[TWIN][part] == configs[TWIN_TIME][part]
    steps = {model: config["trainer"]["max_steps"] for model, config in configs.items()}
    assert steps == {**dict.fromkeys(MODELS, 10), TWIN_TIME: 15}


def test_a_training_of_every_model(shared_data, monkeypatch):
    """Four steps and a handful of windows each, through the app's own trainer."""
    root = shared_data("ett/ETTh1.csv").parent
    real = forecast_training.errors
    monkeypatch.setattr(
        forecast_training,
        "errors",
        lambda guesses, table, split, stride=1: real(guesses, table, split, 1000, (96, 192)),
    )
    small = ("model.dim=32", "model.num_layers=1")
    table = read_long(root / "ETTh1.csv")
    ridges = dict.fromkeys(HORIZONS, SimpleNamespace(predict=lambda values: values[:, -1:]))
    setting = SETTING._replace(steps=4, root=str(root))
    for model in (RWKV, DLINEAR):
        words = setting._replace(overrides=small if model == RWKV else ()).words(Key("ETTh1", model, 0))
        result = forecast_training.train(words, table, ridges, 1000)
        assert (result.steps, result.dataset) == (4, "ETTh1")
        assert list(result.test_errors[ALONE]) == ["96", "192"]
        assert np.isfinite(result.test)


def run_main(tmp_path: Path, *words: str) -> int:
    return benchmark.main(["--output", str(tmp_path), "--root", "nowhere", "--seeds", "2", "--turns", "0", *words])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No set is read: the report is made of the lines."""
    monkeypatch.setattr(benchmark, "_set", lambda root, name: (None, {}))
    monkeypatch.setattr(benchmark, "untrained_errors", lambda table, ridges: {"ridge": found(2.0)})
    monkeypatch.setattr(benchmark, "control_table", lambda table: forecast_tables.published_table())
    monkeypatch.setattr(benchmark, "check", lambda config: None)


def test_a_rerun_does_what_is_missing(tmp_path, monkeypatch, untrained, capsys):
    trained: list[Key] = []
    monkeypatch.setattr(benchmark, "_one", lambda setting, key: trained.append(key) or outcome())
    assert run_main(tmp_path, "--sets", "ETTh1", "--models", "rwkv7,attention") == 0
    assert trained == [Key("ETTh1", model, seed) for seed in (0, 1) for model in (RWKV, TWIN)]
    lines = (tmp_path / LINES).read_text().splitlines()
    (tmp_path / LINES).write_text("\n".join(lines[:3]) + "\n")
    assert run_main(tmp_path, "--sets", "ETTh1", "--models", "rwkv7,attention") == 0
    assert trained[4:] == [Key("ETTh1", TWIN, 1)]
    assert json.loads(lines[0])["outcome"]["test_errors"][MEAN]["96"] == [0.4 * 96 / 1000, 0.4 * 96 / 500]
    text = capsys.readouterr().out
    assert "| rwkv7, mean with ridge | 1234 | 2 |" in text
    with pytest.raises(SystemExit, match="2"):
        run_main(tmp_path, "--sets", "ETTh1", "--steps", "11")
    assert "holds trainings with steps=300, now it is 11" in capsys.readouterr().err


def test_tables_of_no_training(tmp_path, untrained, capsys):
    assert run_main(tmp_path, "--no-train") == 0
    assert "Unfinished: 20 of 20 trainings are missing" in capsys.readouterr().out


def test_margins():
    done = {RWKV: [outcome(1.0), outcome(3.0)], TWIN: []}
    text = forecast_tables.bars_table({"ETTh1": ({"ridge": found(2.0)}, done)}, RWKV, TWIN).json()["rows"]
    assert text[0]["rwkv7"] == "0.1920"
    assert text[0]["bar - ours, %"] == f"{100 * (BARS['ETTh1']['96'] - 0.192) / BARS['ETTh1']['96']:+.1f}"
    assert text[0]["attention, mean with ridge"] is None
    assert mean_and_spread([0.1, 0.3]) == "0.2000 ± 0.1414"
    assert mean_and_spread([0.1]) == "0.1000"


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--models", "lstm"], "give some of rwkv7, attention"), (["--steps", "0"], "--steps must be at least 1")],
)
def test_wrong_arguments(tmp_path, capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        run_main(tmp_path, *words)
    assert says in capsys.readouterr().err
