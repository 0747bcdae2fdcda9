"""Series of long frames: a user's files, and the real ones that come with statsmodels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from apps.timeseries import frame as frames
from apps.timeseries.columns import Columns
from apps.timeseries.covariates import Covariates
from apps.timeseries.data import ForecastData
from apps.timeseries.embedded import load_embedded
from apps.timeseries.files import read_frame
from apps.timeseries.frame import Table
from apps.timeseries.panel import Panel
from apps.timeseries.parts import static_part
from apps.timeseries.splits import split_ends
from core.errors import UserError


class FrameData(ForecastData):
    """Series of a long frame, with covariates.

    Args:
        id_col, time_col, target_col: names of its columns.
        freq: such as "h", "30min", "MS", or a whole number; None: told from the stamps.
        season_length: one or several seasons in steps; None: those usual for the frequency.
        futr: names of columns that are known ahead, also for steps without a target.
        hist: names of columns known up to now.
        static: names of columns that do not change within a series.
        options: of :class:`ForecastData`.
    """

    def __init__(
        self,
        *,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        freq: str | int | None = None,
        season_length: int | list[int] | None = None,
        futr: Sequence[str] = (),
        hist: Sequence[str] = (),
        static: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.columns = Columns(id_col, time_col, target_col)
        self.freq = freq
        self.season_length = [season_length] if isinstance(season_length, int) else season_length
        self.futr, self.hist, self.static = list(futr), list(hist), list(static)
        self.table: Table | None = None

    def use(self, frame: pd.DataFrame, name: str) -> None:
        """Set everything from a frame that messages call ``name``."""
        known = Covariates(tuple(self.futr), tuple(self.hist), tuple(self.static))
        table = frames.read(frame, self.columns, self.freq, known.columns, name=name)
        table = _observed_part(table, f"Column '{self.columns.y}' of {name}")
        fixed = known.read_static(static_part(frame, self.columns, self.static, name), table.ids, self.columns)
        lengths = torch.from_numpy(table.lengths)
        ends = split_ends(lengths, self.horizon, self.val_size, self.test_size)
        known = known.fitted(table, fixed, ends[0].numpy())
        past = [known.of_past(part) for part in table.extra]
        seasons = list(self.season_length or table.frequency.season_lengths)
        self.facts = {
            "freq": table.frequency.alias,
            "season_length": seasons,
            "columns": self.columns._asdict(),
            "futr": self.futr,
            "hist": self.hist,
            "static": self.static,
            "scalers": {key: list(value) for key, value in known.scalers.items()},
        }
        panel = Panel.of(
            table.values,
            names=[str(key) for key in table.ids],
            starts=table.start,
            periods=seasons,
            futr=[futr for futr, _ in past if futr is not None] or None,
            hist=[hist for _, hist in past if hist is not None] or None,
            static=known.of_static(fixed),
        )
        self.table = table
        self.cut(panel, ends)

    def stamps(self, number: int, first: int, steps: int) -> np.ndarray:
        """Times (or whole numbers) of steps ``first`` to ``first + steps`` of a series."""
        if self.table is None:
            return super().stamps(number, first, steps)
        index = self.table.start[number] + np.arange(first, first + steps)
        return self.table.frequency.stamps(index, np.full(steps, self.table.phase[number]))


def _observed_part(table: Table, what: str) -> Table:
    """The table up to each series' last observed step: what follows holds covariates for predictions."""
    seen = [np.flatnonzero(~np.isnan(values)) for values in table.values]
    kept = [number for number, steps in enumerate(seen) if len(steps)]
    if not kept:
        raise UserError(f"{what} holds no number at all.")
    ends = {number: int(seen[number][-1]) + 1 for number in kept}
    return replace(
        table,
        ids=[table.ids[i] for i in kept],
        start=table.start[kept],
        phase=table.phase[kept],
        values=[table.values[i][:end] for i, end in ends.items()],
        extra=[table.extra[i][:end] for i, end in ends.items()],
    )


class Embedded(FrameData):
    """A real series that comes with statsmodels, see :mod:`apps.timeseries.embedded`.

    Args:
        name: "co2" (weekly, with gaps), "sunspots" (yearly), "elnino" (monthly).
        options: of :class:`ForecastData`.
    """

    def __init__(self, *, name: str = "co2", **options: Any) -> None:
        super().__init__(**options)
        self.title = name

    def setup(self, stage: str | None = None) -> None:
        """Read and cut."""
        found = load_embedded(self.title)
        self.unit = found.unit
        self.freq, self.season_length = self.freq or found.freq, self.season_length or [found.season_length]
        self.use(found.frame, f"'{self.title}'")
        self.facts["source"] = found.source


class Csv(FrameData):
    """A user's own series: a long CSV or Parquet file with the columns unique_id, ds, y (or others, see
    :class:`FrameData`), or a folder of such files.

    Args:
        root: the file or folder.
        options: of :class:`FrameData`.
    """

    def __init__(self, *, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()
        self.title = self.root.name.split(".")[0]

    def setup(self, stage: str | None = None) -> None:
        """Read and cut."""
        self.use(read_frame(self.root, self.columns), f"'{self.root}'")
