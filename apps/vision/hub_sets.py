"""Image sets of the Hugging Face Hub, through its package ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.vision.datasets import ImageSet
from apps.vision.images import Encoded
from apps.vision.shards import classes_of, labels_to_targets
from apps.vision.sources import SourceData
from core.errors import UserError, did_you_mean

_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""What a split is usually called."""


class _Column(Sequence[Any]):
    """The pictures of a ``datasets`` column whose decoding is switched off."""

    def __init__(self, items: Any, column: str) -> None:
        self.items, self.column = items, column

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        row = self.items[int(index)][self.column]
        if row["bytes"] is None:
            return row["path"]
        return Encoded(row["bytes"], f"{row['path'] or self.column} (row {index})")


class HuggingFace(SourceData):
    """A data set of the Hub, or one that ``datasets`` has saved to a folder. Needs ``pip install 'greylag[hf]'``.

    Args:
        name: an id on the Hub, a folder that ``save_to_disk`` has written, or anything that ``load_dataset`` takes.
        config: which of its configurations.
        revision: branch, tag or commit on the Hub.
        image, label: the columns. None: the only picture, the only class label.
        train, val, test: names of the splits. None: "train"; "validation", "valid", "val" or "dev"; "test".
        options: see :class:`SourceData`.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        image: str | None = None,
        label: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.config, self.revision = name, config, revision
        self.image, self.label = image, label
        self.splits = {"train": train, "val": val, "test": test}
        self.title = name.rstrip("/").rpartition("/")[2]

    def setup(self, stage: str | None = None) -> None:
        """Open the splits; pictures stay in their Arrow files until they are asked for."""
        found = self._load()
        train, val, test = (self._split(found, split) for split in ("train", "val", "test"))
        if train is None:
            raise UserError(f"'{self.source}' has no split for training (data.train); it has: {', '.join(found)}.")
        image, label = self._columns(train)
        names = getattr(train.features[label], "names", None)
        self.class_names = list(names or classes_of([str(value) for value in train[label]]))
        sets = [None if items is None else self._image_set(items, image, label) for items in (train, val, test)]
        assert sets[0] is not None
        sets[0] = ImageSet(sets[0].pictures, sets[0].targets, self.train_transform)
        self._set_splits(sets[0], sets[1], sets[2])

    def _load(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise UserError("data=vision/hf needs the package 'datasets': pip install 'greylag[hf]'.") from None
        folder = Path(self.source).expanduser()
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset(self.source, self.config, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"data.name='{self.source}' could not be loaded: {reason}") from error
        return {str(key): part for key, part in found.items()} if isinstance(found, dict) else {"train": found}

    def _split(self, found: dict[str, Any], split: str) -> Any:
        wanted = self.splits[split]
        if wanted is not None and wanted not in found:
            raise UserError(
                f"'{self.source}' has no split '{wanted}' (data.{split}){did_you_mean(wanted, list(found))}"
            )
        names = _SPLITS[split] if wanted is None else (wanted,)
        return next((found[name] for name in names if name in found), None)

    def _columns(self, items: Any) -> tuple[str, str]:
        """The names of the columns with the pictures and the classes."""
        chosen: list[str] = []
        for key, given, kind in (("image", self.image, "Image"), ("label", self.label, "ClassLabel")):
            columns = [name for name, feature in items.features.items() if type(feature).__name__ == kind]
            if given is not None and given not in items.features:
                raise UserError(f"'{self.source}' has no column '{given}'{did_you_mean(given, list(items.features))}")
            if given is None and len(columns) != 1:
                has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in items.features.items())
                raise UserError(
                    f"Say which column holds the {key}s of '{self.source}' (data.{key}=...); it has: {has}."
                )
            chosen.append(given or columns[0])
        return chosen[0], chosen[1]

    def _image_set(self, items: Any, image: str, label: str) -> ImageSet:
        import datasets

        # A class label is a number, whatever the classes are called.
        classes = [""] * len(self.class_names) if hasattr(items.features[label], "names") else self.class_names
        targets = labels_to_targets([str(value) for value in items[label]], classes)
        pictures = _Column(items.cast_column(image, datasets.Image(decode=False)), image)
        return ImageSet(pictures, targets, self.eval_transform)
