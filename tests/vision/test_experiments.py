"""The shipped experiments: each composes, builds its data and model, and takes a few real training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision.model import VRWKV7, count_parameters
from core.cli.compose import compose_run, plain
from core.train.session import build_data, build_task


def compose(*overrides: str) -> dict[str, Any]:
    return plain(compose_run(list(overrides)))


def take_steps(config: dict[str, Any], folder: Path, steps: int) -> L.Trainer:
    data = build_data(config)
    task = build_task(config, data)
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=config["trainer"]["gradient_clip_val"],
        default_root_dir=folder,
    )
    trainer.fit(task, datamodule=data)
    return trainer


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Ten classes of 32 x 32 JPEG files, in the layout of CIFAR-10 (JPEG)."""
    random = np.random.RandomState(0)
    for split, count in (("train", 10), ("test", 2)):
        for name in range(10):
            (tmp_path / split / f"class{name}").mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(random.randint(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(tmp_path / split / f"class{name}" / f"{i:04d}.jpg")
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six classes of noise in ImageNet's layout: train/ and val/, pictures of several shapes."""
    random = np.random.RandomState(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in range(6):
            folder = tmp_path / "photos" / split / f"n{name:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.randint(150, 400, 2)
                pixels = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    return tmp_path / "photos"


# What is overridden spares time: building 12 or 24 wide layers takes longer than training them for two steps.
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize(
    ("size", "shorter"),
    [("nano", []), ("tiny", []), ("small", []), ("base", ["model.depth=2"]), ("large", ["model.depth=2"])],
)
def test_imagenet_takes_steps(size: str, shorter: list[str], photos: Path, tmp_path: Path) -> None:
    words = [f"data.root={photos}", "data.num_workers=0", "data.batch_size=2", "trainer.max_epochs=1", *shorter]
    config = compose(f"experiment=vision/imagenet_{size}", *words)
    trainer = take_steps(config, tmp_path, steps=2)
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert "val/top5" in trainer.callback_metrics
    model = trainer.lightning_module.get_submodule("model")
    assert isinstance(model, VRWKV7)
    assert model.grid_size == (14, 14)


# num_workers and depth only spare time; everything else is the recipe.
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_cifar10_takes_steps(class_folders: Path, tmp_path: Path) -> None:
    config = compose(
        "experiment=vision/cifar10",
        f"data.root={class_folders}",
        "data.num_workers=0",
        "data.batch_size=8",
        "model.depth=2",
    )
    trainer = take_steps(config, tmp_path, steps=2)
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert "val/top5" in trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_the_report_takes_the_answers_of_the_last_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("app=vision", "model=vision/pico", "data=vision/fake", "data.img_size=8", "data.batch_size=4")
    data = build_data(config)
    task = build_task(config, data)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, limit_test_batches=2)
    trainer.test(task, datamodule=data, verbose=False)
    monkeypatch.setattr(task, "forward", None)  # no second pass over the test images
    page = task.write_report(tmp_path / "report", data, {}, [])
    right = round(8 * float(trainer.callback_metrics["test/top1"]))
    assert f"{8 - right} of 8" in page.read_text()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_digits_learn_from_the_first_steps_on(mixer: str, tmp_path: Path) -> None:
    config = compose("experiment=vision/digits", f"model.mixer={mixer}", "optim.schedule=constant", "optim.warmup=0")
    trainer = take_steps(config, tmp_path, steps=19)
    assert trainer.callback_metrics["val/loss"] < 2.27  # ln 10 = 2.303 at the start


def test_the_digits_twin_has_as_many_parameters() -> None:
    counts = []
    for mixer in ("rwkv7", "attention"):
        config = compose("experiment=vision/digits", f"model.mixer={mixer}")
        model = build_task(config, build_data(config)).model
        assert isinstance(model, VRWKV7)
        counts.append(count_parameters(model))
    assert abs(counts[1] / counts[0] - 1) < 0.005


def test_own_pictures_need_no_experiment(class_folders: Path) -> None:
    config = compose(
        "app=vision",
        "model=vision/tiny",
        "model.depth=1",
        "data=vision/imagefolder",
        f"data.root={class_folders}",
        "data.img_size=[32,48]",
    )
    data = build_data(config)
    model = build_task(config, data).model
    assert isinstance(model, VRWKV7)
    assert model.grid_size == (2, 3)
    assert model(data.train_set[0][0][None]).shape == (1, 10)
