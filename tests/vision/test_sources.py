"""torchvision's sets and Hugging Face's, on small stand-ins that the libraries themselves can read."""

from __future__ import annotations

import inspect
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_sets

from apps.vision.hub_sets import HuggingFace
from apps.vision.torchvision_sets import TORCHVISION, Torchvision
from core.errors import UserError

SMALL = {"img_size": 4, "crop_pct": 1.0, "batch_size": 2}


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's file format: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """FashionMNIST's files: 30 pictures for training and 4 for the test, filled with their number."""
    for split, count in (("train", 30), ("t10k", 4)):
        pictures = np.arange(count)[:, None, None] * np.ones((1, 28, 28), int)
        write_idx(tmp_path / "FashionMNIST" / "raw" / f"{split}-images-idx3-ubyte", pictures)
        write_idx(tmp_path / "FashionMNIST" / "raw" / f"{split}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_torchvision_set(fashion: Path, in_chans: int) -> None:
    data = Torchvision(
        name="FashionMNIST", root=str(fashion), download=False, in_chans=in_chans, val_fraction=1 / 3, **SMALL
    )
    data.setup()
    facts = data.describe()
    assert facts["sizes"] == {"train": 20, "val": 10, "test": 4}
    assert (facts["dataset"], facts["class_names"][9], facts["test_split"]) == ("FashionMNIST", "Ankle boot", "test")
    image, target = data.test_set[3]
    assert (image.shape, target) == ((in_chans, 4, 4), 3)
    mean, std = torch.tensor(facts["mean"])[:, None, None], torch.tensor(facts["std"])[:, None, None]
    torch.testing.assert_close(image * std + mean, torch.full_like(image, 3 / 255), atol=1e-5, rtol=0)
    items = [split[index] for split in (data.train_set, data.val_set) for index in range(len(split))]
    seen = {(round(float((image * std + mean).mean() * 255)), target) for image, target in items}
    assert seen == {(number, number % 10) for number in range(30)}


def test_unknown_or_missing_torchvision_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'FashionMNIST'"):
        Torchvision(name="FashionMnist")
    with pytest.raises(UserError, match="FashionMNIST is not in"):
        Torchvision(name="FashionMNIST", root=str(tmp_path), download=False).setup()


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_table_fits_torchvision(name: str) -> None:
    """Every name is a class that takes these options; nothing is read."""
    parameters = inspect.signature(getattr(torchvision_sets, name).__init__).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for options in TORCHVISION[name].values():
        assert {"root", "download", *options} <= set(parameters) or anything
    assert "train" in TORCHVISION[name]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A set of ten PNGs for training and four for validation, as `datasets` saves it."""
    datasets = pytest.importorskip("datasets", reason="the package 'datasets' is not installed: greylag[hf]")
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["1", "0"]), "text": datasets.Value("string")}
    )

    def part(count: int) -> Any:
        pictures = [Image.fromarray(np.full((5, 6, 3), 20 * n, np.uint8)) for n in range(count)]
        rows = {"img": pictures, "kind": [n % 2 for n in range(count)], "text": [f"{n}" for n in range(count)]}
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": part(10), "validation": part(4)}).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hugging_face_set(saved: Path, workers: int) -> None:
    data = HuggingFace(name=str(saved), num_workers=workers, **SMALL)
    data.setup()
    facts = data.describe()
    assert facts["sizes"] == {"train": 10, "val": 4, "test": 4}
    # Class 0 is called "1": labels are numbers, whatever the names look like.
    assert (facts["class_names"], facts["test_split"], facts["dataset"]) == (["1", "0"], "val", "set")
    assert data.val_set.targets == [0, 1, 0, 1]
    mean, std = torch.tensor(facts["mean"])[:, None, None], torch.tensor(facts["std"])[:, None, None]
    seen = {
        round(float((image * std + mean).mean() * 255)) for images, _ in data.train_dataloader() for image in images
    }
    assert seen == {20 * n for n in range(10)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train": "trian"}, r"data\.train"),
        ({"image": "imgs"}, "did you mean 'img'"),
        ({"name": "/nowhere/gone"}, "could not be loaded"),
    ],
)
def test_hugging_face_mistakes(saved: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        HuggingFace(**{"name": str(saved), **SMALL, **options}).setup()


def test_any_column_can_be_the_label(saved: Path) -> None:
    data = HuggingFace(name=str(saved), label="text", **SMALL)
    data.setup()
    assert data.class_names == [str(n) for n in range(10)]
    assert data.val_set.targets == [0, 1, 2, 3]


def test_a_damaged_row_is_named(saved: Path) -> None:
    data = HuggingFace(name=str(saved), **SMALL)
    data.setup()
    pictures = data.val_set.pictures
    rows = [{"img": {"bytes": b"broken", "path": "a.png"}}]
    pictures.items = rows
    with pytest.raises(UserError, match=r"a\.png \(row 0\)"):
        data.val_set[0]


def test_without_the_package_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"greylag\[hf\]"):
        HuggingFace(name="someone/something", **SMALL).setup()
