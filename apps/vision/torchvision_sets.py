"""torchvision's data sets of single-label pictures, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision import datasets

from apps.vision.datasets import ImageSet, cache_folder
from apps.vision.sources import SourceData
from core.errors import UserError, did_you_mean

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {**_TWO, "val": {"split": "val"}}
TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "CIFAR10", "CIFAR100"), _FLAG),
    "EMNIST": {split: {"split": "balanced", **flag} for split, flag in _FLAG.items()},
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101", "StanfordCars"), _TWO),
    **dict.fromkeys(("DTD", "Flowers102", "FGVCAircraft", "PCAM", "RenderedSST2"), _THREE),
    "Country211": {**_TWO, "val": {"split": "valid"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "EuroSAT": {"train": {}},
}
"""torchvision's sets of single-label pictures, and what each wants to hear for a split."""


class _Pictures(Sequence[Any]):
    """The pictures of a torchvision data set, without their classes."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index][0]


class Torchvision(SourceData):
    """One of torchvision's data sets, see :data:`TORCHVISION`.

    Args:
        name: its class's name.
        root: where its files are, as torchvision lays them out. None: the cache folder.
        download: fetch them if they are missing; torchvision checks their sums.
        options: see :class:`SourceData`.
    """

    def __init__(self, *, name: str, root: str | None = None, download: bool = True, **options: Any) -> None:
        super().__init__(**options)
        if name not in TORCHVISION:
            raise UserError(f"There is no data set '{name}' (data.name){did_you_mean(name, list(TORCHVISION))}")
        self.title, self.download = name, download
        self.root = cache_folder() / "torchvision" / name if root is None else Path(root).expanduser()

    def setup(self, stage: str | None = None) -> None:
        """Open the splits, after a download where one is wanted and needed."""
        splits = {split: self._open(options) for split, options in TORCHVISION[self.title].items()}
        targets = {split: _targets(items) for split, items in splits.items()}
        self.class_names = _class_names(splits["train"], targets["train"])
        train, val, test = (
            ImageSet(
                _Pictures(splits[split]),
                targets[split],
                self.train_transform if split == "train" else self.eval_transform,
            )
            if split in splits
            else None
            for split in ("train", "val", "test")
        )
        assert train is not None
        self._set_splits(train, val, test)

    def _open(self, options: dict[str, Any]) -> Any:
        kind = getattr(datasets, self.title)
        try:
            try:
                return kind(str(self.root), **options, download=False)
            except (RuntimeError, OSError):
                if not self.download:
                    raise
                self.root.mkdir(parents=True, exist_ok=True)
                return kind(str(self.root), **options, download=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.title} is not in '{self.root}' and could not be had: {reason}") from error
        except ModuleNotFoundError as error:
            raise UserError(f"{self.title} needs the package '{error.name}': pip install it.") from error


def _targets(items: Any) -> list[int]:
    """The classes of a torchvision data set; read from all its pictures only where it keeps them nowhere else."""
    for name in ("targets", "labels", "_labels"):
        if (found := getattr(items, name, None)) is not None:
            return [int(target) for target in found]
    if (samples := getattr(items, "_samples", None)) is not None:
        return [int(target) for _, target in samples]
    return [int(items[index][1]) for index in range(len(items))]


def _class_names(items: Any, targets: Sequence[int]) -> list[str]:
    if names := getattr(items, "classes", None):
        return [str(name) if isinstance(name, str) else str(name[0]) for name in names]
    return [str(number) for number in range(max(targets) + 1)]
