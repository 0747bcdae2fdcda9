"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; when the block ends well it becomes `path`, else it is removed.

    A full disk, an exception or a kill leaves the former file as it was: the new one reaches the disk before it
    takes the name. What a killed process leaves behind is hidden and ends in ``.new``.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.touch()
        mode = new.stat().st_mode  # what the user's umask gives; some writers make files for their owner alone
        yield new
        new.chmod(mode)
        _to_disk(new)
        os.replace(new, path)
        with suppress(OSError):  # not every file system lets one
            _to_disk(path.parent)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
