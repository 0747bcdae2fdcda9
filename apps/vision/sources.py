"""Data modules over other people's formats: what they share, and the one over WebDataset shards.

Each ends in the same map-style image sets as a folder of pictures, so that order, augmentation, resuming and the split
of validation from training are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.vision.data import IMAGENET_MEAN, IMAGENET_STD, VisionData
from apps.vision.datasets import ImageSet
from apps.vision.shards import ShardPictures, ShardSet, classes_of, find_shards, labels_to_targets, read_contents
from apps.vision.transforms import InputSpec
from core.errors import UserError

GREY_MEAN, GREY_STD = 0.449, 0.226  # timm's, for one channel


class SourceData(VisionData):
    """What these sources share: the input spec, and a ``val`` or ``test`` split that may be missing.

    Without one, ``val_fraction`` of the training pictures are held out, stratified. Without ``test``, the validation
    pictures are the test set too, and ``describe()`` says so.

    Args:
        val_fraction: see above.
        img_size: (height, width) in pixels, or one number.
        in_chans: 1 or 3; pictures are converted.
        mean, std: of the channels; None: ImageNet's.
        crop_pct, interpolation: see :class:`apps.vision.transforms.InputSpec`.
        options: see :class:`apps.vision.data.VisionData`.
    """

    def __init__(
        self,
        *,
        val_fraction: float = 0.1,
        img_size: int | list[int] = 224,
        in_chans: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        **options: Any,
    ) -> None:
        usual = (IMAGENET_MEAN, IMAGENET_STD) if in_chans == 3 else ([GREY_MEAN] * in_chans, [GREY_STD] * in_chans)
        spec = InputSpec.create(img_size, in_chans, mean or usual[0], std or usual[1], crop_pct, interpolation)
        super().__init__(spec, **options)
        self.val_fraction = val_fraction
        self.has_test = True

    def _set_splits(self, train: ImageSet, val: ImageSet | None, test: ImageSet | None) -> None:
        if val is None:
            self._hold_out(train, self.val_fraction)
        else:
            self.train_set, self.val_set = train, val
        self.has_test = test is not None
        self.test_set = self.val_set if test is None else test

    def describe(self) -> dict[str, Any]:
        """As the base's, with ``test_split`` naming the pictures that the test numbers stand on."""
        return {**super().describe(), "test_split": "test" if self.has_test else "val"}


class WebDataset(SourceData):
    """Shards in WebDataset's format, on disks that can be read at any place.

    Args:
        root: the folder of the shards.
        train, val, test: which of its files are whose, see :func:`apps.vision.shards.find_shards`; val and test may be
            missing.
        classes: a text file with the classes' names in order, one a line, in ``root`` or by its own path. None:
            ``classes.txt`` in ``root`` if there is one, else the labels themselves.
        label_key: where the label stands in ``.json`` members.
        window: how many shards are mixed at a time, see :class:`apps.vision.shards.ShardSet`.
        options: see :class:`SourceData`.
    """

    def __init__(
        self,
        *,
        root: str,
        train: str = "*train*.tar",
        val: str = "*val*.tar",
        test: str = "*test*.tar",
        classes: str | None = None,
        label_key: str = "label",
        window: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if window < 0:
            raise UserError(f"data.window is {window}; a number of shards, or 0 for all, was expected.")
        self.root = Path(root).expanduser()
        self.patterns = {"train": train, "val": val, "test": test}
        self.classes, self.label_key, self.window = classes, label_key, window
        self.title = self.root.name

    def setup(self, stage: str | None = None) -> None:
        """List the shards' contents: seconds per million samples once they are in the cache, minutes the first time."""
        if not self.root.is_dir():
            raise UserError(f"data.root='{self.root}' is no folder; expected one with shards such as train-000000.tar.")
        found = {split: find_shards(self.root, pattern) for split, pattern in self.patterns.items()}
        if not found["train"]:
            raise UserError(f"data.root='{self.root}' has no files '{self.patterns['train']}' (data.train).")
        contents = {split: [read_contents(path, self.label_key) for path in paths] for split, paths in found.items()}
        labels = {split: [str(label) for c in parts for label in c.labels] for split, parts in contents.items()}
        self.class_names = self._class_names(labels["train"])
        train, val, test = (
            ShardSet(
                pictures := ShardPictures(found[split], contents[split]),
                labels_to_targets(labels[split], self.class_names),
                self.train_transform if split == "train" else self.eval_transform,
                pictures.shards,
                self.window,
            )
            if found[split]
            else None
            for split in ("train", "val", "test")
        )
        assert train is not None
        self._set_splits(train, val, test)

    def _class_names(self, labels: Sequence[str]) -> list[str]:
        file = self.root / (self.classes or "classes.txt")
        if file.is_file():
            return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if self.classes:
            raise UserError(f"data.classes='{self.classes}': there is no such file.")
        return classes_of(labels)
