"""What else is known of a series: covariates known ahead, known up to now, and fixed; standardised for the model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import narwhals as nw
import numpy as np

from apps.timeseries import frame
from apps.timeseries.columns import Columns, read_numbers
from apps.timeseries.frame import Table
from apps.timeseries.frequency import Frequency
from core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Covariates:
    """Which columns are covariates, and how they are standardised."""

    futr: tuple[str, ...] = ()
    """Known ahead: holidays, prices, tariffs."""
    hist: tuple[str, ...] = ()
    """Known up to now."""
    static: tuple[str, ...] = ()
    """One value a series."""
    scalers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(mean, standard deviation) of the training rows, by column."""

    def __post_init__(self) -> None:
        names = [*self.futr, *self.hist, *self.static]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"Column '{repeated[0]}' is named twice among the covariates; once is enough.")

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that are read with the target."""
        return (*self.futr, *self.hist)

    def fitted(self, table: Table, static: np.ndarray | None, ends: np.ndarray) -> Covariates:
        """With the statistics of these series up to `ends` (B,), read with :attr:`columns`; and of static (B, G)."""
        scalers: dict[str, tuple[float, float]] = {}
        if self.columns:
            rows = np.concatenate([part[:end] for part, end in zip(table.extra, ends, strict=True)])
            scalers |= {name: _moments(rows[:, i]) for i, name in enumerate(self.columns)}
        if static is not None:
            scalers |= {name: _moments(static[:, i]) for i, name in enumerate(self.static)}
        return replace(self, scalers=scalers)

    def of_past(self, extra: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Columns (..., C) of a table -> futr (..., F) and hist (..., E), float32, standardised, 0 where missing."""
        cut = len(self.futr)
        futr = self._standardise(extra[..., :cut], self.futr) if self.futr else None
        return futr, self._standardise(extra[..., cut:], self.hist) if self.hist else None

    def of_future(
        self,
        futr_df: Any,
        ids: Sequence[Hashable],
        begin: np.ndarray,
        phase: np.ndarray,
        h: int,
        frequency: Frequency,
        columns: Columns,
    ) -> np.ndarray | None:
        """What is known of the steps to forecast.

        Args:
            futr_df: a frame with ids, times and every column of :attr:`futr`; further rows do not matter.
            ids: of the B series.
            begin: (B,) index of each first step to forecast.
            phase: (B,) of the series.
            h: steps.
            frequency, columns: of the series' frame.

        Returns:
            (B, h, F) float32, standardised; None without such covariates.

        Raises:
            UserError: the frame is missing, or lacks a series, a step or a value.
        """
        if not self.futr:
            return None
        if futr_df is None:
            raise UserError(
                f"This model knows {_listed(self.futr)} ahead; give futr_df with the columns {columns.unique_id}, "
                f"{columns.ds} and these for the {h} steps to forecast."
            )
        known = dict(zip(ids, phase.tolist(), strict=True))
        table = frame.read(futr_df, columns, frequency, self.futr, target=False, phases=known, name="futr_df")
        place = {key: number for number, key in enumerate(table.ids)}
        found = np.full((len(ids), h, len(self.futr)), np.nan)
        for row, key in enumerate(ids):
            if key not in place:
                raise UserError(f"futr_df has no rows of {key!r}; every series to forecast must be there.")
            number = place[key]
            offset = int(begin[row] - table.start[number])
            have = table.extra[number][max(offset, 0) : max(offset + h, 0)]
            found[row, max(-offset, 0) : max(-offset, 0) + len(have)] = have
        if (missing := np.isnan(found)).any():
            row, step, column = (int(i) for i in np.argwhere(missing)[0])
            stamp = frequency.stamps(begin[row : row + 1] + step, phase[row : row + 1])[0]
            raise UserError(
                f"futr_df has no '{self.futr[column]}' of {ids[row]!r} at {frame.tell(stamp)}; every one of "
                f"the {h} steps to forecast needs it."
            )
        return self._standardise(found, self.futr)

    def of_static(self, static: np.ndarray | None) -> np.ndarray | None:
        """(B, G) as :meth:`read_static` gives it -> float32, standardised."""
        return None if static is None else self._standardise(static, self.static)

    def read_static(self, static_df: Any, ids: Sequence[Hashable], columns: Columns) -> np.ndarray | None:
        """A frame with one row a series -> (B, G) float64 in the order of `ids`; None without static covariates.

        Raises:
            UserError: the frame is missing, lacks a series, a column or a value, or has a series twice.
        """
        if not self.static:
            return None
        if static_df is None:
            raise UserError(f"This model uses {_listed(self.static)} of each series; give static_df with them.")
        held = nw.from_native(static_df, eager_only=True)
        for name in (columns.unique_id, *self.static):
            if name not in held.columns:
                raise UserError(f"static_df has no column '{name}'{did_you_mean(name, held.columns)}")
        keys = held[columns.unique_id].to_list()
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"static_df has {twice!r} more than once; one row for each series was expected.")
        numbers = np.column_stack([read_numbers(held, name, columns, "static_df") for name in self.static])
        place = {key: number for number, key in enumerate(keys)}
        if missing := [key for key in ids if key not in place or np.isnan(numbers[place[key]]).any()]:
            raise UserError(f"static_df lacks {missing[0]!r}, or a value of it among {_listed(self.static)}.")
        return numbers[[place[key] for key in ids]]

    def _standardise(self, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        mean, spread = np.array([self.scalers[name] for name in names]).T
        return np.nan_to_num((values - mean) / spread).astype(np.float32)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of what is there; (0, 1) of nothing, deviation 1 of what never changes."""
    held = values[~np.isnan(values)]
    if not len(held):
        return 0.0, 1.0
    spread = float(held.std())
    return float(held.mean()), spread if spread > 1e-9 * max(1.0, float(np.abs(held).max())) else 1.0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
