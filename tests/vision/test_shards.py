"""Shards: written by the webdataset package or by hand, read like a folder, from any place, resumed, split."""

from __future__ import annotations

import gc
import io
import json
import pickle
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision import shards
from apps.vision.shards import ShardPictures, find_shards, labels_to_targets, read_contents
from apps.vision.sources import WebDataset
from core.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))


def png(value: int, size: int = 6) -> bytes:
    """A picture that is filled with one number."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, samples: list[dict[str, bytes]], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"{names[number] if names else f'{number:06d}'}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four training shards of ten pictures, filled with 0 .. 39, of classes 0, 1, 2, 0, ...; one for validation."""
    root = tmp_path / "set"
    for shard in range(4):
        values = range(10 * shard, 10 * shard + 10)
        write(root / f"train-{shard:06d}.tar", [{"png": png(v), "cls": str(v % 3).encode()} for v in values])
    write(root / "val-000000.tar", [{"png": png(v), "cls": b"2"} for v in (100, 101)])
    return root


def dataset(root: Path, **options: Any) -> WebDataset:
    data = WebDataset(**{"root": str(root), "img_size": 4, "crop_pct": 1.0, "batch_size": 5, **options})
    data.setup()
    return data


def values(images: torch.Tensor) -> list[int]:
    """The numbers that the pictures were filled with."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((images.mean((-1, -2)) * std + mean)[:, 0] * 255).round().int().tolist()


def test_every_picture_with_its_class(folder: Path) -> None:
    data = dataset(folder)
    assert data.describe()["sizes"] == {"train": 40, "val": 2, "test": 2}
    assert (data.class_names, data.describe()["test_split"]) == (["0", "1", "2"], "val")
    for index in (39, 0, 17):
        image, target = data.train_set[index]
        assert (values(image[None]), target) == ([index], index % 3)
    assert values(torch.stack([data.val_set[i][0] for i in range(2)])) == [100, 101]


def test_shards_of_the_webdataset_package(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the webdataset package is not installed")
    root = tmp_path / "set"
    root.mkdir()
    with webdataset.ShardWriter(str(root / "train-%06d.tar"), maxcount=4, verbose=0) as sink:
        for number in range(10):
            picture = Image.fromarray(np.full((5, 7, 3), 20 * number, np.uint8))
            sink.write({"__key__": f"a.b/c{number}", "png": picture, "cls": number % 2, "json": {"x": 1}})
    data = dataset(root, val_fraction=0.2)
    files = sorted(str(path) for path in root.glob("*.tar"))
    assert len(files) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        theirs = webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple("png", "cls")
        expected = [(int(np.asarray(picture)[0, 0, 0]), target) for picture, target in theirs]
        del theirs
        gc.collect()
    paths = [Path(file) for file in files]
    pictures = ShardPictures(paths, [read_contents(path) for path in paths])
    ours = [int(np.asarray(Image.open(io.BytesIO(picture.content)))[0, 0, 0]) for picture in pictures]
    assert [value for value, _ in expected] == ours
    both = [
        (values(split[i][0][None])[0], split[i][1])
        for split in (data.train_set, data.val_set)
        for i in range(len(split))
    ]
    assert sorted(both) == sorted(expected)


def test_an_epoch_sees_all_and_stays_within_a_window(folder: Path) -> None:
    data = dataset(folder, window=2, batch_size=10, augment={"kind": "none"})
    loader = data.train_dataloader()
    batches = [values(images) for images, _ in loader]
    assert sorted(v for batch in batches for v in batch) == list(range(40))
    for half in (batches[0] + batches[1], batches[2] + batches[3]):
        assert len({value // 10 for value in half}) == 2
    loader.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
    assert [values(images) for images, _ in loader] != batches
    everything = [
        values(i) for i, _ in dataset(folder, window=0, batch_size=10, augment={"kind": "none"}).train_dataloader()
    ]
    assert max(len({value // 10 for value in batch}) for batch in everything) > 2


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_can_be_the_first(folder: Path, workers: int) -> None:
    options = {"augment": {"kind": "resize_crop", "re_prob": 0.5}, "seed": 3, "window": 2}
    whole = [images for images, _ in dataset(folder, **options).train_dataloader()]
    resumed = dataset(folder, num_workers=workers, **options)
    resumed.load_state_dict({"epoch": 0, "batch": 5, "seed": 3})
    rest = [images for images, _ in resumed.train_dataloader()]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[5:], strict=True))


def test_ranks_share_an_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for rank in (0, 1):
        data = dataset(folder, augment={"kind": "none"})
        monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, 2))
        seen += [v for images, _ in data.train_dataloader() for v in values(images)]
    assert sorted(seen) == list(range(40))


def test_held_out_pictures_are_never_trained_on(folder: Path) -> None:
    (folder / "val-000000.tar").unlink()
    data = dataset(folder, val_fraction=0.25, augment={"kind": "none"})
    held = values(torch.stack([data.val_set[i][0] for i in range(len(data.val_set))]))
    assert Counter(v % 3 for v in held) == {0: 4, 1: 3, 2: 3}
    trained = [v for images, _ in data.train_dataloader() for v in values(images)]
    assert sorted(trained + held) == list(range(40))


def test_contents_are_scanned_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dataset(folder).describe()
    monkeypatch.setattr(shards, "_scan", lambda *args: pytest.fail("scanned again"))
    assert dataset(folder).describe() == before
    monkeypatch.undo()
    write(folder / "train-000003.tar", [{"png": png(7), "cls": b"1"}])  # another file of the same name
    assert dataset(folder).describe()["sizes"]["train"] == 31


def test_names_of_classes(tmp_path: Path) -> None:
    samples = [
        {"jpg": png(v), "json": json.dumps({"kind": kind}).encode()} for v, kind in enumerate(("dog", "cat", "dog"))
    ]
    write(tmp_path / "set" / "train.tar", samples * 5, [f"deep/er/{i}" for i in range(15)])
    data = dataset(tmp_path / "set", label_key="kind", val_fraction=0.2)
    assert data.class_names == ["cat", "dog"]
    assert Counter(data.train_set.targets) == {1: 8, 0: 4}
    (tmp_path / "set" / "classes.txt").write_text("dog\ncat\nowl\n")
    data = dataset(tmp_path / "set", label_key="kind", val_fraction=0.2)
    assert (data.class_names, Counter(data.train_set.targets)) == (["dog", "cat", "owl"], {0: 8, 1: 4})
    assert labels_to_targets(["2", "0"], ["7", "8", "9"]) == [2, 0]
    assert labels_to_targets(["9", "7"], ["7", "8", "9"]) == [2, 0]
    with pytest.raises(UserError, match="'wolf'"):
        labels_to_targets(["wolf"], ["dog"])


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(tmp_path, "a-{008..010}.tar::b.tar")] == [
        "a-008.tar", "a-009.tar", "a-010.tar", "b.tar",
    ]  # fmt: skip
    assert [p.name for p in find_shards(tmp_path, "a-*.tar")] == ["a-008.tar", "a-009.tar", "a-010.tar"]
    with pytest.raises(UserError, match=r"a-011\.tar"):
        find_shards(tmp_path, "a-{008..011}.tar")
    (tmp_path / "c.tar.gz").touch()
    with pytest.raises(UserError, match="compressed"):
        find_shards(tmp_path, "c*")


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([{"png": b"x"}], "no label"),
        ([{"cls": b"1"}], "no picture"),
        ([{"png": b"x", "json": b"{not json"}], "no label"),
        ([], "no samples"),
    ],
)
def test_wrong_shards_are_explained(samples: list[dict[str, bytes]], sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.tar", samples)
    with pytest.raises(UserError, match=sentence):
        dataset(tmp_path / "set")


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        dataset(tmp_path / "gone")
    with pytest.raises(UserError, match=r"data\.train"):
        dataset(folder, train="x-*.tar")
    with pytest.raises(UserError, match=r"data\.classes"):
        dataset(folder, classes="names.txt")
    data = dataset(folder)
    write(folder / "train-000000.tar", [{"png": png(0), "cls": b"0"}])  # replaced under our feet
    data.train_set.pictures._files.clear()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"train-000000\.tar at byte"):
        [data.train_set[i] for i in range(10)]
    (folder / "train-000001.tar").write_bytes(b"no tar file at all, but long enough to be looked at" * 30)
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        dataset(folder)


def test_few_files_are_open_and_processes_get_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    paths = find_shards(folder, "train-*.tar")
    pictures = ShardPictures(paths, [read_contents(path) for path in paths])
    contents = [pictures[i].content for i in range(0, 40, 7)]
    assert len(pictures._files) == 2
    again = pickle.loads(pickle.dumps(pictures))
    assert not again._files
    assert [again[i].content for i in range(0, 40, 7)] == contents
