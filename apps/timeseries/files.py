"""Long frames on disk: CSV and Parquet files, or folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from apps.timeseries.columns import Columns
from core.errors import UserError

ENDINGS = (".csv", ".csv.gz", ".parquet")
FLOATS = "%.10g"
"""How numbers are written into CSV."""


def read_frame(path: Path, columns: Columns, name: str = "input") -> pd.DataFrame:
    """A long frame from a file or a folder; ids are text.

    A file without the column of ids is taken for one series that is named like the file.

    Args:
        path: a .csv, .csv.gz or .parquet file, or a folder of them, which are put together.
        columns: the frame's; that of the ids may be missing.
        name: what messages call a path that is not there.

    Raises:
        UserError: no such file, an unknown ending, or a file that cannot be read.
    """
    files = sorted(found for found in path.iterdir() if _ending(found)) if path.is_dir() else [path]
    if path.is_dir() and not files:
        raise UserError(f"The folder '{path}' holds no series (endings: {', '.join(ENDINGS)}).")
    return pd.concat([_read_file(file, columns, name) for file in files], ignore_index=True)


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as CSV or Parquet, by the file's ending. Raises UserError for another ending."""
    if not _ending(path):
        raise UserError(f"output={path}: expected a file that ends in {', '.join(ENDINGS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".parquet":
            _require_arrow(path)
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False, float_format=FLOATS)
    except OSError as error:
        raise UserError(f"'{path}' could not be written: {error.strerror or error}.") from None


def _ending(path: Path) -> str:
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), "")


def _read_file(path: Path, columns: Columns, name: str) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"There is no file or folder '{path}' ({name}).")
    if not (ending := _ending(path)):
        raise UserError(f"'{path}' is none of the files that are read here: {', '.join(ENDINGS)}.")
    try:
        if ending == ".parquet":
            _require_arrow(path)
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={columns.unique_id: str})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, OSError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"'{path}' could not be read: {first}.") from None
    if columns.unique_id not in frame.columns and _has(frame, (columns.ds, columns.y)):
        frame.insert(0, columns.unique_id, path.name.removesuffix(ending))
    return frame


def _has(frame: pd.DataFrame, names: Sequence[str]) -> bool:
    return all(name in frame.columns for name in names)


def _require_arrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise UserError(f"'{path}' is Parquet, which needs pyarrow: pip install pyarrow. CSV works without.")
