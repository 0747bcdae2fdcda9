"""Killed and resumed equals unbroken, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.cli import main
from core.train.runs import RunFolder

START = ["train", "experiment=tiny/points", "trainer.max_epochs=3"]


def only_run(folder: Path) -> RunFolder:
    return RunFolder.open(folder / "runs")


def last(run: RunFolder) -> dict[str, Any]:
    return torch.load(run.checkpoints / "last.ckpt", weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two checkpoints are not bitwise the same."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where} keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


TRAINED = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def assert_same_end(run: RunFolder, reference: RunFolder) -> None:
    a, b = last(run), last(reference)
    assert "current_model_state" in a  # there is an average, and it is compared too
    assert [d for key in TRAINED for d in differences(a[key], b[key], key)] == []
    assert (run.model / "model.safetensors").read_bytes() == (reference.model / "model.safetensors").read_bytes()
    assert run.read_metrics()["metrics"] == reference.read_metrics()["metrics"]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, tiny_app: Path) -> Callable[[int, int], None]:
    """`interrupt(5, SIGTERM)`: the process gets that signal in its fifth training batch."""
    import tinyapp

    def arm(batch: int, number: int) -> None:
        def pause(task: Any) -> None:
            if task.trainer.fit_loop.total_batch_idx == batch:
                monkeypatch.setattr(tinyapp.TinyTask, "_pause", lambda task: None)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(tinyapp.TinyTask, "_pause", pause)

    return arm


@pytest.fixture
def unbroken(tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    folder = tmp_path / "unbroken"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(START) == 0
    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    return RunFolder(only_run(folder).path)


@pytest.mark.parametrize(
    ("batch", "number", "code"),
    [
        (1, signal.SIGTERM, 143),  # in the first epoch
        (8, signal.SIGTERM, 143),  # in the middle of the second
        (9, signal.SIGINT, 130),
        (11, signal.SIGTERM, 143),  # in the last batch of an epoch: saved after the validation that follows
        (12, signal.SIGTERM, 143),  # in the first of an epoch
    ],
)
def test_stopped_by_a_signal(
    unbroken: RunFolder,
    interrupt: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
    batch: int,
    number: int,
    code: int,
) -> None:
    interrupt(batch, number)
    assert main(START) == code
    run = only_run(Path())
    said = capsys.readouterr().err
    assert f"Stopped at step {batch + 1} " in said
    assert f"greylag train run={run.shown}" in said
    assert run.read_metrics()["status"] == "unfinished"
    state = last(run)
    assert state["TinyData"]["batch"] == (batch + 1) % 6
    assert main(["train", f"run={run.path}"]) == 0
    assert_same_end(run, unbroken)
    assert len((run.log / "history.csv").read_text().splitlines()) == 1 + 3


def test_resumed_again_and_again_with_workers(unbroken: RunFolder, interrupt: Callable[[int, int], None]) -> None:
    """Stopped three times, with other numbers of workers each time: order and augmentation do not depend on them."""
    interrupt(3, signal.SIGTERM)
    assert main([*START, "data.num_workers=2"]) == 143
    run = only_run(Path())
    interrupt(7, signal.SIGTERM)
    assert main(["train", f"run={run.path}"]) == 143
    interrupt(14, signal.SIGTERM)
    assert main(["train", f"run={run.path}", "data.num_workers=0"]) == 143
    assert main(["train", f"run={run.path}", "data.num_workers=2"]) == 0
    assert_same_end(run, unbroken)


def test_a_finished_run_says_so(unbroken: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = (unbroken.model / "model.safetensors").stat().st_mtime_ns
    assert main(["train", f"run={unbroken.path}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (unbroken.model / "model.safetensors").stat().st_mtime_ns == before


def test_killed_between_last_epoch_and_model(unbroken: RunFolder) -> None:
    """The weights are there, the model folder is not: resuming only finishes."""
    expected = (unbroken.model / "model.safetensors").read_bytes()
    (unbroken.model / "model.safetensors").unlink()
    unbroken.merge_metrics({"status": "unfinished"})
    assert main(["train", f"run={unbroken.path}"]) == 0
    assert (unbroken.model / "model.safetensors").read_bytes() == expected


def test_accumulated_gradients_are_never_cut(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[int, int], None]
) -> None:
    """A signal amid an accumulation waits for the optimiser's step."""
    options = ["trainer.accumulate_grad_batches=3"]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main([*START, *options]) == 0
    monkeypatch.chdir(tmp_path / "cut")
    interrupt(6, signal.SIGTERM)
    assert main([*START, *options]) == 143
    run = only_run(Path())
    assert last(run)["TinyData"]["batch"] == 3
    assert main(["train", f"run={run.path}"]) == 0
    assert_same_end(run, only_run(tmp_path / "whole"))


def test_a_new_learning_rate_counts_when_going_on(unbroken: RunFolder, interrupt: Callable[[int, int], None]) -> None:
    interrupt(8, signal.SIGTERM)
    assert main(START) == 143
    run = only_run(Path())
    assert main(["train", f"run={run.path}", "optim.lr=0.002"]) == 0
    expected = last(unbroken)["optimizer_states"][0]["param_groups"][0]["lr"] / 5
    assert last(run)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(expected)
    assert run.read_config()["optim"]["lr"] == 0.002
    assert (run.path / "config.1.yaml").is_file()
