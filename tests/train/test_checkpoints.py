"""Checkpoints survive full disks, and a loss that is no number stops the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.cli import main
from core.errors import UserError
from core.train.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from core.train.checkpoints import Checkpoints, _better
from core.train.runs import RunFolder
from core.train.stops import LossWatch

START = ["train", "experiment=tiny/points"]


def fail(number: int) -> Callable[..., Any]:
    def raise_error(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return raise_error


@pytest.mark.parametrize("place", ["save", "replace"])
def test_a_full_disk_leaves_the_former_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "runs" / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with monkeypatch.context() as patch:
        patch.setattr(*{"save": (torch, "save"), "replace": (os, "replace")}[place], fail(errno.ENOSPC))
        with pytest.raises(UserError, match="No space left on device.*still whole.*free some space.*train run="):
            AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_really_full_disk(tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The disk fills up in the second epoch; later there is room again, and the run goes on to the same end."""
    import tinyapp

    monkeypatch.chdir(tmp_path)
    assert main([*START, "runs_dir=unbroken"]) == 0
    save, calls = torch.save, [0]

    def full_at_last(checkpoint: Any, file: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:  # best and last of the first epoch fit
            Path(file).write_bytes(b"half a checkpoi")
            fail(errno.ENOSPC)()
        save(checkpoint, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_at_last)
        assert main(START) == 2
    assert "No space left on device" in capsys.readouterr().err
    run = RunFolder.open("runs")
    assert read_checkpoint(run.checkpoints / "last.ckpt")["global_step"] == 6
    assert main(["train", f"run={run.path}"]) == 0
    expected = RunFolder.open("unbroken")
    assert (run.model / "model.safetensors").read_bytes() == (expected.model / "model.safetensors").read_bytes()
    assert tinyapp.TinyTask  # the app that was trained


def test_an_unwritable_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", fail(errno.EACCES))
    with pytest.raises(UserError, match="Permission denied.*there is none before it.*make the folder writable"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")


def test_broken_and_missing_checkpoints_are_told(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(("at", "known"), [(8, "step 6"), (2, "There is no checkpoint yet")])
def test_nan_stops_and_says_what_to_try(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, at: int, known: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*START, f"task.nan_at={at}"]) == 1
    said = capsys.readouterr().err
    assert f"not finite at step {at + 1} " in said
    assert known in said
    assert "optim.lr=0.005" in said
    checkpoints = list(tmp_path.glob("runs/*/*/*/checkpoints/last.ckpt"))
    for path in checkpoints:
        assert all(torch.isfinite(t).all() for t in read_checkpoint(path)["current_model_state"].values())
    if checkpoints:  # the advice works
        assert main(["train", f"run={tmp_path}/runs", "task.nan_at=null", "optim.lr=0.005"]) == 0


def test_infinite_weights_are_not_saved(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A finite loss whose gradient is not: the step breaks the weights, the next loss would show it too late."""
    import tinyapp

    def break_weights(task: Any, *arguments: Any) -> None:
        if task.global_step == 6:
            task.model[0].weight.data[0, 0] = float("inf")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tinyapp.TinyTask, "on_train_epoch_end", break_weights, raising=False)
    assert main(START) == 1
    assert "The weights are not finite at step 6" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*/*/checkpoints/last.ckpt"))


def test_the_loss_is_looked_at_now_and_then_but_the_step_is_exact() -> None:
    watch = LossWatch(check_every=3)
    found = []
    for step, loss in enumerate([1.0, float("inf"), 1.0, float("nan"), 1.0, 1.0], start=1):
        watch.see({"loss": torch.tensor(loss)}, step)
        found.append(watch.first_bad_step())
    assert found == [None, None, 2, None, None, 2]
    assert watch.first_bad_step(now=True) == 2


@pytest.mark.parametrize(
    ("value", "best", "mode", "better"),
    [
        (1, None, "max", True),
        (1, 1, "max", True),
        (0, 1, "max", False),
        (0, 1, "min", True),
        (float("nan"), 1, "max", False),
    ],
)
def test_which_is_best(value: float, best: float | None, mode: str, better: bool) -> None:
    assert _better(value, best, mode) is better


def test_the_best_is_kept_and_becomes_the_model(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitored metric is made best in the second epoch of three."""
    import tinyapp

    def validate(task: Any, batch: Any, batch_idx: int) -> None:
        task.log("val/loss", torch.tensor([0.5, 0.1, 0.9, 0.1][task.current_epoch]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tinyapp.TinyTask, "validation_step", validate)
    assert main([*START, "monitor.metric=val/loss", "monitor.mode=min"]) == 0
    run = RunFolder.open("runs")
    best = read_checkpoint(run.checkpoints / "best.ckpt")
    assert best["epoch"] == 1
    from safetensors.torch import load_file

    for name, tensor in load_file(run.model / "model.safetensors").items():
        assert torch.equal(tensor, best["state_dict"][f"model.{name}"])


def test_mode_is_checked() -> None:
    with pytest.raises(UserError, match="max or min"):
        Checkpoints(mode="up")
