"""Map-style image sets and how they come to be on disk."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from torch.utils.data import Dataset

from apps.vision.images import Encoded, image_extensions, open_image
from core.errors import UserError


class Chosen(Sequence[Any]):
    """Some items of a sequence in another order, read when asked for."""

    def __init__(self, items: Sequence[Any], indices: Sequence[int]) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.indices[index]]


@dataclass(frozen=True)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Pictures, their classes, and the transform that makes an item (image (C, H, W), class index).

    Attributes:
        pictures: anything indexable: arrays in memory, or paths or bytes that ``open_image`` reads when asked for.
        targets: the class index of each picture.
        transform: from a picture to a tensor.
    """

    pictures: Sequence[Any]
    targets: Sequence[int]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.pictures[index]
        if isinstance(picture, str | os.PathLike | Encoded):
            picture = open_image(picture)
        return self.transform(picture), int(self.targets[index])

    def select(self, indices: Sequence[int], transform: Callable[[Any], Tensor] | None = None) -> Self:
        """The items at ``indices``, in that order, with another transform where one is given."""
        listed = isinstance(self.pictures, list)
        return replace(
            self,
            pictures=[self.pictures[i] for i in indices] if listed else Chosen(self.pictures, indices),
            targets=[self.targets[i] for i in indices],
            transform=transform or self.transform,
        )


def class_folders(root: Path) -> list[str]:
    """Names of the class folders directly below ``root``, sorted; hidden ones are left out."""
    if not root.is_dir():
        raise UserError(f"There is no folder '{root}'; it should hold one folder per class.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"'{root}' holds no class folders; expected {root.name}/<class>/<picture>.")
    return names


def read_class_folders(
    root: Path, transform: Callable[[Any], Tensor], classes: Sequence[str] | None = None
) -> ImageSet:
    """``root/<class>/**/<picture>`` as an image set; the files are listed now and read later.

    Args:
        root: the folder of one split.
        transform: see :class:`ImageSet`.
        classes: the classes' order, from the training split. None: those found, sorted.

    Raises:
        UserError: no such folder, no classes, a class that training does not know, a class without pictures.
    """
    found = class_folders(root)
    classes = found if classes is None else list(classes)
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(f"'{root}' has the class '{unknown[0]}', which the training folder does not have.")
    endings = image_extensions()
    pictures: list[str] = []
    targets: list[int] = []
    for name in found:
        files = sorted(
            os.path.join(folder, file)
            for folder, _, files in os.walk(root / name)
            for file in files
            if os.path.splitext(file)[1].lower() in endings and not file.startswith(".")
        )
        if not files:
            raise UserError(f"The class folder '{root / name}' holds no pictures (endings: .jpg, .png, ...).")
        pictures += files
        targets += [classes.index(name)] * len(files)
    return ImageSet(pictures, targets, transform)


def cache_folder() -> Path:
    """Where unpacked and downloaded data go: $GREYLAG_CACHE, else the user's cache folder."""
    if own := os.environ.get("GREYLAG_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "greylag"


def unpack_once(archive: Path, target: Path) -> Path:
    """Unpack a tar archive to ``target`` unless it is there already; whole or not at all.

    Raises:
        UserError: the archive is missing or damaged, or the disk cannot take it.
    """

    def unpack(folder: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")

    try:
        return fill_once(target, unpack)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"'{archive}' could not be unpacked to '{target}': {error}.") from error


def fill_once(target: Path, fill: Callable[[Path], Any]) -> Path:
    """Make the folder ``target`` by ``fill(folder)`` unless it is there already.

    The files are written beside the target and moved there by one rename, so that a killed run leaves no
    half-filled folder behind that a later one would take for the data, and several processes may race.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fill(scratch)
        # mkdtemp makes it private; the data are as public as any other folder of the user.
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
