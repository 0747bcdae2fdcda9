"""A stopped run on shards, with every random part there is, ends in the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision.task import VisionTask
from core.cli import main
from core.train.runs import RunFolder

WORDS = [
    "train", "app=vision", "model=vision/pico", "model.depth=1", "model.embed_dim=32", "model.drop_path_rate=0.2",
    "data=vision/webdataset", "data.img_size=8", "data.batch_size=6", "data.window=2", "data.augment.scale=[0.5,1]",
    "optim=lamb", "optim.layer_decay=0.7", "ema=0.9", "logger=csv_only", "trainer.max_epochs=2", "task.pictures=0",
    "task.mixup=0.8", "task.cutmix=1.0", "task.mix_prob=0.7", "task.mix_mode=elem", "task.mix_off_epoch=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training shards of twelve pictures of three classes, and one for validation."""
    root = tmp_path_factory.mktemp("set")
    random = np.random.RandomState(0)
    for name in ("train-0", "train-1", "train-2", "val-0"):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for number in range(12):
                buffer = io.BytesIO()
                Image.fromarray(random.randint(0, 256, (12, 10, 3), dtype=np.uint8)).save(buffer, "png")
                for ending, content in (("png", buffer.getvalue()), ("cls", str(number % 3).encode())):
                    info = tarfile.TarInfo(f"{name}/{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def train(folder: Path, shards: Path, *words: str) -> tuple[int, RunFolder]:
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = main([*WORDS, f"data.root={shards}", *words])
    return code, RunFolder.open(folder / "runs")


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GREYLAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        code, run = train(tmp_path_factory.mktemp("unbroken"), shards)
    assert code == 0
    return run


@pytest.mark.parametrize("stop", [2, 8])  # in the first epoch, which mixes, and in the second, which does not
def test_stopped_and_resumed_equals_unbroken(
    stop: int, shards: Path, unbroken: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VisionTask.training_step

    def stopped(task: VisionTask, batch: Any, batch_idx: int) -> Any:
        if task.trainer.fit_loop.total_batch_idx == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(task, batch, batch_idx)

    monkeypatch.setattr(VisionTask, "training_step", stopped)
    code, run = train(tmp_path / "broken", shards, "data.num_workers=2")
    assert code == 143
    state = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert state["global_step"] == stop + 1
    monkeypatch.setattr(VisionTask, "training_step", whole)
    assert main(["train", f"run={run.path}", "data.num_workers=0"]) == 0
    assert (run.model / "model.safetensors").read_bytes() == (unbroken.model / "model.safetensors").read_bytes()
    ours, theirs = (torch.load(r.checkpoints / "last.ckpt", weights_only=True) for r in (run, unbroken))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])
    assert run.read_metrics()["metrics"] == unbroken.read_metrics()["metrics"]
