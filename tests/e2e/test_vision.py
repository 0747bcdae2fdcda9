"""The main job through the command line, on a shrunken digits experiment: train, evaluate, predict, export."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core.cli import main
from core.train.runs import RunFolder

SMALL = [
    "experiment=vision/digits", "model.depth=1", "model.embed_dim=32", "model.patch_size=4", "logger=csv_only",
    "trainer.max_epochs=2", "trainer.limit_train_batches=4", "task.pictures=0", "monitor.metric=val/top1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One small run, with all that a run leaves behind."""
    folder = tmp_path_factory.mktemp("vision")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SMALL, "logger=tensorboard"]) == 0
    return RunFolder.open(folder / "runs")


def test_the_run_folder_is_whole(trained: RunFolder) -> None:
    parts = trained.path.parts[-3:-1]
    assert parts == ("vision", "digits")
    metrics = trained.read_metrics()
    assert metrics["status"] == "finished"
    assert {"val/top1", "test/top1", "test/loss"} <= metrics["metrics"].keys()
    assert sorted(path.name for path in trained.model.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in trained.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (trained.report / "index.html").stat().st_size > 10_000
    assert list(trained.log.glob("events*"))
    assert len((trained.log / "history.csv").read_text().splitlines()) == 3
    torch.load(trained.checkpoints / "last.ckpt", weights_only=True)
    assert trained.read_config()["model"]["embed_dim"] == 32
    assert "revision" in trained.config.read_text().splitlines()[0]


def test_evaluate_gives_the_same_numbers(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.read_metrics()
    assert main(["evaluate", f"run={trained.path}"]) == 0
    after = trained.read_metrics()
    assert {key: after[key] for key in before if key != "evaluations"} == {
        key: value for key, value in before.items() if key != "evaluations"
    }
    entry = after["evaluations"][-1]
    assert entry["metrics"] == pytest.approx(before["metrics"], abs=1e-6)
    assert "top1" in capsys.readouterr().out


def test_predict(trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    target = tmp_path / "answers.jsonl"
    words = ["predict", f"run={trained.path}", f"input={tmp_path}/grey.png"]
    assert main([*words, f"output={target}", "top_k=2"]) == 0
    answer = json.loads(target.read_text())
    assert len(answer["top"]) == 2
    assert main(["predict", f"model={trained.model}", f"input={tmp_path}/grey.png"]) == 0
    assert answer["label"] in capsys.readouterr().out
    assert main([*words, "topk=2"]) == 2
    assert "did you mean 'top_k'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_export_runs_without_greylag(trained: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert main(["export", f"run={trained.path}", f"to={target}", "format=torch_export"]) == 0
    assert (target / "model.safetensors").read_bytes() == (trained.model / "model.safetensors").read_bytes()
    code = (
        "import sys, torch; sys.modules['core'] = None\n"
        f"print(torch.export.load(r'{target}/model.pt2').module()(torch.zeros(3, 1, 8, 8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "[3, 10]" in done.stdout
    assert main(["export", f"run={trained.path}", f"to={target}"]) == 2


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "core.cli", "train", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def saved_step(folder: Path) -> int:
    found = list(folder.glob("runs/*/*/*/checkpoints/last.ckpt"))
    return int(torch.load(found[0], weights_only=True)["global_step"]) if found else 0


def test_killed_and_resumed_equals_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of an epoch, then SIGTERM in the middle of another; bit for bit the same weights."""
    words = [*SMALL, "data.batch_size=16", "trainer.limit_train_batches=60", "callbacks.checkpoints.every_steps=7"]
    (tmp_path / "unbroken").mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    assert main(["train", *words]) == 0
    expected = RunFolder.open(tmp_path / "unbroken" / "runs")

    folder = tmp_path / "broken"
    process = start(folder, *words)
    while saved_step(folder) < 7 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    run = RunFolder.open(folder / "runs")
    first = saved_step(folder)
    assert 7 <= first < 120
    assert first % 60, "killed at an epoch's end: this would prove nothing"

    process = start(folder, f"run={run.path}")
    while saved_step(folder) <= first and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143, said
    assert "Go on with: greylag train run=" in said
    assert first < saved_step(folder) < 120

    assert main(["train", f"run={run.path}"]) == 0
    assert (run.model / "model.safetensors").read_bytes() == (expected.model / "model.safetensors").read_bytes()
    ours, theirs = (torch.load(r.checkpoints / "last.ckpt", weights_only=True) for r in (run, expected))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])
    assert run.read_metrics()["metrics"] == expected.read_metrics()["metrics"]
