"""Two processes joined by gloo, started by Lightning from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.cli import main
from core.train.runs import RunFolder

POINTS = ["train", "experiment=tiny/points", "trainer.max_epochs=2"]
TWO = ["trainer=ddp_cpu2", "data.batch_size=8"]


def launch(folder: Path, *words: str, **environment: Any) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "core.cli", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {key: str(value) for key, value in environment.items()},
    )


def test_two_processes_train_as_one(tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two times eight items make the same steps as sixteen; one run folder; metrics over all items."""
    monkeypatch.chdir(tmp_path)
    assert main([*POINTS, "model.plain=true"]) == 0
    process = launch(tmp_path / "two", *POINTS, *TWO, "model.plain=true")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert said.count("Trained in") == 1
    one, two = RunFolder.open(tmp_path / "runs"), RunFolder.open(tmp_path / "two" / "runs")
    assert len(list((tmp_path / "two").glob("runs/*/*/*"))) == 1
    expected = load_file(one.model / "model.safetensors")
    for name, tensor in load_file(two.model / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    assert two.read_metrics()["metrics"] == pytest.approx(one.read_metrics()["metrics"], rel=1e-4)
    assert "48 items" in (two.report / "index.html").read_text()


def test_two_processes_stop_and_go_on(tiny_app: Path, tmp_path: Path) -> None:
    """SIGTERM to the first process alone: both stop after the same batch, and resume to the same end."""
    reference = launch(tmp_path / "whole", *POINTS, *TWO)
    marker = tmp_path / "marker"
    process = launch(tmp_path / "cut", *POINTS, *TWO, TINY_PAUSE_AT=8, TINY_MARKER=marker)
    while not marker.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    run = RunFolder.open(tmp_path / "cut" / "runs")
    again = launch(tmp_path / "cut", "train", f"run={run.path}")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    _, errors = reference.communicate(timeout=300)
    assert reference.returncode == 0, errors
    expected = RunFolder.open(tmp_path / "whole" / "runs")
    assert (run.model / "model.safetensors").read_bytes() == (expected.model / "model.safetensors").read_bytes()
