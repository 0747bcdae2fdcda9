"""WebDataset shards (tar files of samples) as a map-style image set.

A sample is the neighbouring members of one name but for the ending: ``n01/0007.jpg`` and ``n01/0007.cls``
(https://github.com/webdataset/webdataset). Each shard's table of contents is read once, from headers and labels alone,
and kept in the cache folder; pictures are then read by their place in the file. So shards have what folders have: any
batch of any epoch can be the first, whatever the workers and the ranks, and they can be split into training and
validation. Nothing is unpacked. The price is that shards have to be files that can be read at any place, not streams.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from apps.vision.datasets import ImageSet, cache_folder
from apps.vision.images import Encoded, image_extensions
from core.atomic import replacing
from core.errors import UserError

_OPEN_FILES = 64
_FORMAT = 1  # of the tables in the cache


class Contents(NamedTuple):
    """What a shard holds, one entry a sample: where its picture's bytes lie, and its label as written there."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


class ShardPictures(Sequence[Any]):
    """The pictures of several shards, one after the other, read when asked for.

    Args:
        paths: the shards.
        contents: of each.
    """

    def __init__(self, paths: Sequence[Path], contents: Sequence[Contents]) -> None:
        self.paths = list(paths)
        self.shards = np.repeat(np.arange(len(paths)), [len(c.offsets) for c in contents])
        self.offsets = np.concatenate([c.offsets for c in contents])
        self.sizes = np.concatenate([c.sizes for c in contents])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Encoded:
        shard, offset, size = int(self.shards[index]), int(self.offsets[index]), int(self.sizes[index])
        name = f"{self.paths[shard]} at byte {offset}"
        # pread has no file position: processes that forked with the file open do not disturb one another.
        content = os.pread(self._file(shard), size, offset)
        if len(content) != size:
            raise UserError(f"'{name}' is cut off; the file has changed since it was listed.")
        return Encoded(content, name)

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        while len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # by then `os` itself may be gone
        for file in getattr(self, "_files", {}).values():
            close(file)


@dataclass(frozen=True)
class ShardSet(ImageSet):
    """An image set that is shuffled with its shards in mind.

    Attributes:
        shards: which shard each item is in.
        window: an epoch goes through the shards in random order, this many at a time, their pictures mixed: reads stay
            within a few files that the system can keep in memory. 0: all pictures are mixed with all.
    """

    shards: np.ndarray
    window: int

    def select(self, indices: Sequence[int], transform: Callable[[Any], Tensor] | None = None) -> Self:
        """See :meth:`ImageSet.select`."""
        return replace(super().select(indices, transform), shards=self.shards[np.asarray(indices, dtype=np.int64)])

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """One epoch's order, a function of the generator alone."""
        order = np.argsort(self.shards, kind="stable")
        numbers, starts = np.unique(self.shards[order], return_index=True)
        parts = np.split(order, starts[1:])
        window = self.window or max(1, len(numbers))
        shuffled = torch.randperm(len(numbers), generator=generator).tolist()
        result: list[int] = []
        for first in range(0, len(shuffled), window):
            pool = np.concatenate([parts[shard] for shard in shuffled[first : first + window]])
            result += pool[torch.randperm(len(pool), generator=generator).numpy()].tolist()
        return result


def find_shards(root: Path, pattern: str) -> list[Path]:
    """The files that a pattern means, in order.

    Args:
        root: the folder that relative patterns start from.
        pattern: "train-*.tar", or with a range of numbers as "train-{0000..0146}.tar"; several, separated by "::".

    Raises:
        UserError: a file of a range is missing, or one is compressed.
    """
    found: list[Path] = []
    for part in pattern.split("::"):
        if re.search(r"\{\d+\.\.\d+\}", part):
            files = [root / name for name in _expand(part)]
            if missing := [file for file in files if not file.is_file()]:
                raise UserError(f"The shard '{missing[0]}' of '{part}' is missing ({len(missing)} in all).")
        else:
            files = [root / name for name in sorted(glob.glob(part, root_dir=root))]
        found += files
    if packed := [file for file in found if file.suffix in (".gz", ".bz2", ".xz", ".zst", ".tgz")]:
        raise UserError(f"The shard '{packed[0]}' is compressed and cannot be read at any place: unpack it to .tar.")
    return found


def _expand(pattern: str) -> Iterator[str]:
    """a-{08..10}.tar -> a-08.tar, a-09.tar, a-10.tar; every range of the pattern."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{len(found[1])}}{pattern[found.end() :]}")


def read_contents(path: Path, label_key: str = "label") -> Contents:
    """A shard's table of contents, from the cache if the file has not changed since.

    Args:
        path: the shard.
        label_key: where the label stands in ``.json`` members; a ``.cls`` member is a label as a whole.

    Raises:
        UserError: no tar file, or a sample without a picture or without a label.
    """
    try:
        facts = path.stat()
        key = repr((str(path.resolve()), facts.st_size, facts.st_mtime_ns, label_key, _FORMAT))
        cached = cache_folder() / "shards" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
        if cached.is_file():
            with np.load(cached, allow_pickle=False) as table:
                return Contents(*(table[field] for field in Contents._fields))
        contents = _scan(path, label_key)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"The shard '{path}' cannot be read: {error}.") from error
    cached.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cached) as new, new.open("wb") as file:
        np.savez(file, allow_pickle=False, **contents._asdict())
    return contents


def _scan(path: Path, label_key: str) -> Contents:
    """Read all headers, and the labels."""
    pictures = image_extensions()
    offsets: list[int] = []
    sizes: list[int] = []
    labels: list[str] = []
    with tarfile.open(path, "r:") as tar:
        for name, members in _samples(tar):
            picture = next((m for ending, m in members.items() if f".{ending.rpartition('.')[2]}" in pictures), None)
            label = _label(tar, members, label_key)
            if picture is None or label is None:
                lack = "picture" if picture is None else f"label (.cls, or '{label_key}' in .json)"
                raise UserError(f"The sample '{name}' of '{path}' has no {lack}; it has: {', '.join(members)}.")
            if picture.issparse():
                raise UserError(f"'{path}' stores '{picture.name}' with holes; pack it anew without --sparse.")
            offsets.append(picture.offset_data)
            sizes.append(picture.size)
            labels.append(label)
    if not offsets:
        raise UserError(f"The shard '{path}' holds no samples.")
    return Contents(np.array(offsets), np.array(sizes), np.array(labels))


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members of one name: the name up to the first dot of its last part, and the members by ending."""
    name, members = None, {}
    for member in tar:
        # Only the place is needed; tarfile would keep every header of a shard in memory.
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        folder, _, file = member.name.rpartition("/")
        stem, dot, ending = file.partition(".")
        if not member.isreg() or not dot or not stem:
            continue
        if (folder, stem) != name:
            if members:
                yield _named(name), members
            name, members = (folder, stem), {}
        members[ending.lower()] = member
    if members:
        yield _named(name), members


def _named(name: tuple[str, str] | None) -> str:
    return "/".join(part for part in name or () if part)


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], key: str) -> str | None:
    for ending in ("cls", "json"):
        if ending not in members:
            continue
        file = tar.extractfile(members[ending])
        assert file is not None
        text = file.read().decode("utf-8", errors="replace").strip()
        if ending != "json":
            return text
        try:
            value = json.loads(text)
        except ValueError:
            return None
        return str(value[key]) if isinstance(value, dict) and key in value else None
    return None


def labels_to_targets(labels: Sequence[str], classes: list[str]) -> list[int]:
    """Labels as written in shards -> class numbers. They are numbers if all of them can be; else names of classes.

    Raises:
        UserError: a label that is neither.
    """
    found = set(labels)
    if all(label.isdecimal() and int(label) < len(classes) for label in found):
        known = {label: int(label) for label in found}
    else:
        known = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(found - known.keys()):
        raise UserError(f"The label '{unknown[0]}' is none of the {len(classes)} classes, by name or by number.")
    return [known[label] for label in labels]


def classes_of(labels: Sequence[str]) -> list[str]:
    """Names for labels that come without a list: "0" to the largest if all are numbers, else the labels, sorted."""
    found = set(labels)
    if all(label.isdecimal() for label in found):
        return [str(number) for number in range(max(map(int, found)) + 1)]
    return sorted(found)
