"""The main job of the forecasting app through the command line, on small data: train, evaluate, predict, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from core.cli import main
from core.train.runs import RunFolder

SMALL = [
    "app=timeseries", "model=timeseries/rimer", "data=timeseries/fake", "model.patch_len=8", "model.output_len=24",
    "model.dim=16", "model.head_dim=8", "model.num_layers=1", "data.windows_per_epoch=64", "data.batch_size=16",
    "trainer.max_epochs=2", "logger=csv_only", "task.pictures=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One small run, with all that a run leaves behind."""
    folder = tmp_path_factory.mktemp("timeseries")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SMALL, "logger=tensorboard"]) == 0
    return RunFolder.open(folder / "runs")


def test_the_run_folder_is_whole(trained: RunFolder) -> None:
    metrics = trained.read_metrics()
    assert metrics["status"] == "finished"
    names = {"loss", "mse", "mae", "mase", "wql", "coverage_80", "coverage_95"}
    assert {f"{split}/{name}" for split in ("val", "test") for name in names} == metrics["metrics"].keys()
    assert sorted(path.name for path in trained.model.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (trained.report / "index.html").stat().st_size > 10_000
    assert list(trained.log.glob("events*"))
    torch.load(trained.checkpoints / "last.ckpt", weights_only=True)


def test_evaluate_gives_the_same_numbers_and_more(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.read_metrics()["metrics"]
    assert main(["evaluate", f"run={trained.path}"]) == 0
    assert trained.read_metrics()["evaluations"][-1]["metrics"] == pytest.approx(before, abs=1e-6)
    assert "seasonal naive" in capsys.readouterr().out
    found = json.loads(trained.evaluation.read_text())["splits"]["test"]
    assert found["errors"]["model"]["mase"] == pytest.approx(before["test/mase"], rel=1e-5)
    assert len(found["by_step"]["mae"]) == 24
    assert len(found["by_series"]) == 4


def test_predict(trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = pd.date_range("2026-01-01", periods=60, freq="h")
    frame = pd.DataFrame({"unique_id": "a", "ds": times, "y": np.sin(np.arange(60) / 2)})
    frame.to_csv(tmp_path / "series.csv", index=False)
    words = ["predict", f"run={trained.path}", f"input={tmp_path}/series.csv", "h=40"]
    assert main([*words, f"output={tmp_path}/forecast.csv", f"plot={tmp_path}/forecast.png", "level=[90]"]) == 0
    found = pd.read_csv(tmp_path / "forecast.csv")
    assert list(found.columns) == ["unique_id", "ds", "Rimer", "Rimer-lo-90", "Rimer-hi-90"]
    assert found["ds"].iloc[[0, -1]].tolist() == ["2026-01-03 12:00:00", "2026-01-05 03:00:00"]
    assert (tmp_path / "forecast.png").is_file()
    assert main(["predict", f"model={trained.model}", f"input={tmp_path}/series.csv"]) == 0
    assert "Rimer-lo-95" in capsys.readouterr().out
    assert main([*words, "levle=80"]) == 2
    assert "did you mean 'level'" in capsys.readouterr().err


@pytest.mark.parametrize("twin", ["ridge", "dlinear", "seasonal_naive"])
def test_twins_take_the_same_way(twin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in SMALL if not word.startswith("model")]
    words += [f"model=timeseries/{twin}", "model.output_len=24", "task.loss=mse", "data.length=400"]
    assert main(["train", *words]) == 0
    run = RunFolder.open(tmp_path / "runs")
    metrics = run.read_metrics()
    assert metrics["epochs"] == (2 if twin == "dlinear" else 1)
    errors = metrics["metrics"]
    assert "test/coverage_80" not in errors
    if twin == "seasonal_naive":
        assert main(["evaluate", f"run={run.path}"]) == 0
        beside = json.loads(run.evaluation.read_text())["splits"]["test"]["errors"]
        assert errors["test/mae"] == pytest.approx(beside["seasonal_naive"]["mae"], rel=1e-5)
    if twin == "ridge":
        assert errors["test/mase"] < 1.0


def test_killed_and_resumed_equals_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop after each epoch, the random windows and hidden inputs included: bit for bit the same weights."""
    (tmp_path / "unbroken").mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    assert main(["train", *SMALL, "optim.schedule=constant", "optim.warmup=0"]) == 0
    expected = RunFolder.open(tmp_path / "unbroken" / "runs")
    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    assert main(["train", *SMALL, "optim.schedule=constant", "optim.warmup=0", "trainer.max_epochs=1"]) == 0
    run = RunFolder.open(tmp_path / "broken" / "runs")
    assert main(["train", f"run={run.path}", "trainer.max_epochs=2"]) == 0
    assert (run.model / "model.safetensors").read_bytes() == (expected.model / "model.safetensors").read_bytes()


def test_a_ridge_path_is_fitted_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model.ridge=true", "model.input_len=48", "data.length=400", "trainer.max_epochs=1", "ema=0.9"]
    assert main(["train", *SMALL, *words]) == 0
    tensors = load_file(RunFolder.open(tmp_path / "runs").model / "model.safetensors")
    assert bool(tensors["ridge.fitted"])
    assert tensors["ridge.weight"].sum(0) == pytest.approx(torch.ones(24), abs=1e-4), "columns of a ridge add up to one"
