"""The image sets: sizes, splits that never change, and what they say about wrong folders."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision.data import CIFAR10, Digits, FakeImages, ImageFolder
from apps.vision.datasets import unpack_once
from apps.vision.splits import stratified_split
from core.errors import UserError


def write_pictures(root: Path, classes: dict[str, int], size: int = 6) -> Path:
    """`root/<class>/<number>.png`, each picture with a colour of its own."""
    random = np.random.RandomState(len(root.name))
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = random.randint(0, 256, (size, size + 1, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / name / f"{i:04d}.png")
    return root


def test_stratified_split_is_a_partition_in_proportion() -> None:
    labels = [0] * 100 + [1] * 50 + [2] * 7
    parts = stratified_split(labels, (0.7, 0.1, 0.2), seed=3)
    assert sorted(i for part in parts for i in part) == list(range(157))
    for part, fraction in zip(parts, (0.7, 0.1, 0.2), strict=True):
        counts = Counter(labels[i] for i in part)
        assert all(abs(counts[c] - fraction * labels.count(c)) <= 1 for c in range(3))
    assert parts == stratified_split(labels, (0.7, 0.1, 0.2), seed=3)
    assert parts != stratified_split(labels, (0.7, 0.1, 0.2), seed=4)
    with pytest.raises(ValueError, match="add up"):
        stratified_split(labels, (0.7, 0.1), seed=0)


def test_digits_split_is_the_one_the_numbers_stand_on() -> None:
    data = Digits(batch_size=8)
    data.setup("fit")
    facts = data.describe()
    assert facts["sizes"] == {"train": 1258, "val": 180, "test": 359}
    assert facts["class_names"] == list("0123456789")
    assert (facts["img_size"], facts["in_chans"], facts["num_classes"]) == ([8, 8], 1, 10)
    # Each class within one image of its share, and the very pictures that every quoted number was measured on.
    assert max(Counter(data.test_set.targets).values()) - min(Counter(data.test_set.targets).values()) <= 3
    pixels = torch.stack(list(data.test_set.pictures)).mul(16).round().to(torch.uint8)
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == "0019fd9e44ff8d42"


def test_digits_splits_share_no_picture() -> None:
    data = Digits(batch_size=8, seed=7)
    data.setup()
    keys = [{p.numpy().tobytes() for p in split.pictures} for split in (data.train_set, data.val_set, data.test_set)]
    assert [len(k) for k in keys] == [1258, 180, 359]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]


def test_digits_items_are_normalised_and_only_training_is_augmented() -> None:
    data = Digits(batch_size=8, augment={"kind": "affine", "degrees": 10, "translate": 0.1, "scale": 0.1})
    data.setup()
    stack = torch.stack([data.val_set[i][0] for i in range(len(data.val_set))])
    assert stack.shape == (180, 1, 8, 8)
    assert abs(stack.mean()) < 0.05
    assert abs(stack.std() - 1) < 0.05
    assert torch.equal(data.test_set[3][0], data.test_set[3][0])
    assert not torch.equal(data.train_set[3][0], data.train_set[3][0])


def test_describe_is_plain() -> None:
    def check(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, bool), value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            check(part)

    for data in (Digits(), FakeImages()):
        data.setup()
        check(data.describe())


def test_cifar_from_folders_holds_out_validation(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"cat": 20, "dog": 30})
    write_pictures(tmp_path / "test", {"cat": 2, "dog": 3})
    data = CIFAR10(root=str(tmp_path), val_fraction=0.1)
    data.setup()
    assert data.describe()["sizes"] == {"train": 45, "val": 5, "test": 5}
    assert Counter(data.val_set.targets) == {0: 2, 1: 3}
    assert not set(data.val_set.pictures) & set(data.train_set.pictures)
    assert all("test" in Path(p).parts for p in data.test_set.pictures)
    image, target = data.test_set[0]
    assert image.shape == (3, 32, 32)
    assert (target, data.class_names) == (0, ["cat", "dog"])
    assert data.describe()["dataset"] == "CIFAR-10 (JPEG)"


def test_cifar_is_unpacked_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, shared = tmp_path / "source", tmp_path / "shared"
    (shared / "cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        write_pictures(source / split, {"cat": 4, "dog": 4})
        with tarfile.open(shared / "cifar10" / f"{split}.tar.gz", "w:gz") as tar:
            tar.add(source / split, arcname=".")
    monkeypatch.setenv("GREYLAG_SHARED", str(shared))
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        data = CIFAR10(val_fraction=0.25)
        data.setup()
        assert data.describe()["sizes"] == {"train": 6, "val": 2, "test": 8}
        for split in ("train", "test"):  # the second round must do without the archives' content
            (shared / "cifar10" / f"{split}.tar.gz").write_bytes(b"")
    left = {p.name for p in (tmp_path / "cache" / "cifar10-jpeg").iterdir()}
    assert left == {"train", "test"}


def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", {"cat": 40}, size=40)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in", arcname=".")
    content = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.tar\.gz"):
        unpack_once(tmp_path / "a.tar.gz", tmp_path / "out" / "train")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", arcname="../../escaped")
    with pytest.raises(UserError):
        unpack_once(tmp_path / "evil.tar.gz", tmp_path / "deep" / "er" / "train")
    assert not any(tmp_path.rglob("escaped"))


def test_cifar_root_must_hold_both_splits(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train\.tar\.gz"):
        CIFAR10(root=str(tmp_path))


def test_without_files_torchvision_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREYLAG_SHARED", raising=False)
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))
    downloads: list[str] = []

    class StandIn:
        """torchvision's CIFAR10 as far as it is used, with a download that counts."""

        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            if download:
                downloads.append(root)
                (Path(root) / "batch").touch()
            assert (Path(root) / "batch").exists()
            self.data = np.zeros((20 if train else 4, 32, 32, 3), np.uint8)
            self.targets = [i % 2 for i in range(len(self.data))]

    monkeypatch.setattr("apps.vision.data.TorchvisionCIFAR10", StandIn)
    for _ in range(2):
        data = CIFAR10(val_fraction=0.1)
        data.setup()
        assert (data.title, data.describe()["sizes"]) == ("CIFAR-10", {"train": 18, "val": 2, "test": 4})
        assert data.train_set[0][0].shape == (3, 32, 32)
    assert len(downloads) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["cifar10"]


def test_no_network_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.delenv("GREYLAG_SHARED", raising=False)
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("apps.vision.data.TorchvisionCIFAR10", offline)
    with pytest.raises(UserError, match=r"data\.root"):
        CIFAR10().setup()
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_real_cifar(shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data("cifar10/test.tar.gz").parent
    for split in ("train", "test"):  # the small archive stands for both: unpacking 50,000 files takes a while
        os.makedirs(tmp_path / "packed", exist_ok=True)
        (tmp_path / "packed" / f"{split}.tar.gz").symlink_to(folder / "test.tar.gz")
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))
    data = CIFAR10(root=str(tmp_path / "packed"), val_fraction=0.1)
    data.setup()
    assert data.describe()["sizes"] == {"train": 9000, "val": 1000, "test": 10000}
    assert data.class_names[0] == "airplane"
    stack = torch.stack([data.test_set[i][0] for i in range(0, 10000, 50)])
    assert stack.shape == (200, 3, 32, 32)
    assert stack.mean((0, 2, 3)).abs().max() < 0.15
    assert (stack.std((0, 2, 3)) - 1).abs().max() < 0.15


def test_image_folder_splits(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 10, "b": 10})
    data = ImageFolder(root=str(tmp_path), img_size=8, val_fraction=0.2)
    data.setup()
    assert data.describe()["sizes"] == {"train": 16, "val": 4, "test": 4}
    assert data.describe()["test_split"] == "val"
    write_pictures(tmp_path / "val", {"b": 3})
    write_pictures(tmp_path / "test", {"a": 1, "b": 1})
    data.setup()
    assert data.describe()["sizes"] == {"train": 20, "val": 3, "test": 2}
    assert data.describe()["test_split"] == "test"
    assert data.val_set.targets == [1, 1, 1]  # "b" is class 1 even where it is alone
    assert data.train_set[0][0].shape == (3, 8, 8)


def test_image_folder_errors(tmp_path: Path) -> None:
    def setup() -> None:
        ImageFolder(root=str(tmp_path / "set"), img_size=8).setup()

    with pytest.raises(UserError, match="no folder"):
        setup()
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="'train'"):
        setup()
    (tmp_path / "set" / "train").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        setup()
    (tmp_path / "set" / "train" / "cat").mkdir()
    with pytest.raises(UserError, match="cat' holds no pictures"):
        setup()
    write_pictures(tmp_path / "set" / "train", {"cat": 1})
    with pytest.raises(UserError, match="val_fraction"):
        setup()
    write_pictures(tmp_path / "set" / "train", {"cat": 9})
    write_pictures(tmp_path / "set" / "val", {"wolf": 2})
    with pytest.raises(UserError, match="wolf"):
        setup()


def test_a_corrupt_training_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"cat": 10})
    (tmp_path / "train" / "cat" / "0003.png").write_bytes(b"broken")
    data = ImageFolder(root=str(tmp_path), img_size=8, val_fraction=0.1)
    data.setup()
    items = [(split, i) for split in (data.train_set, data.val_set) for i in range(len(split))]
    with pytest.raises(UserError, match=r"0003\.png"):
        [split[i] for split, i in items]


def test_fake_images_are_the_same_every_time() -> None:
    one, two = FakeImages(length=8, in_chans=1), FakeImages(length=8, in_chans=1, seed=5)
    one.setup(), two.setup()
    for i in range(8):
        assert torch.equal(one.train_set[i][0], two.train_set[i][0])
    assert not torch.equal(one.train_set[0][0], one.val_set[0][0])
