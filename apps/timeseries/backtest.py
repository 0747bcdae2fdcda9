"""Forecasts from cutoffs in the past, beside what came: models are carried from cutoff to cutoff, not read again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.timeseries import frame
from apps.timeseries.columns import Columns
from apps.timeseries.frame import Table
from apps.timeseries.learned import Learned, Live, Statics
from apps.timeseries.options import require_whole
from apps.timeseries.quantiles import Wanted
from core.errors import UserError

ModelFor = Callable[[int, Table], Learned | None]
"""Window number and the series up to its cutoffs -> the model to begin with there; None: the one before goes on."""


@dataclass(frozen=True)
class Backtest:
    """Which steps of each series are forecast: the last ones, in windows; the last window ends where the series ends.

    Args:
        table: whole series.
        static: their static covariates.
        h: steps of a window.
        n_windows: of each series.
        step_size: steps from window to window.
    """

    table: Table
    static: Statics | None
    h: int
    n_windows: int
    step_size: int

    def __post_init__(self) -> None:
        for name in ("h", "n_windows", "step_size"):
            require_whole(name, getattr(self, name))
        test_size = self.h + self.step_size * (self.n_windows - 1)
        short = [key for key, length in zip(self.table.ids, self.table.lengths, strict=True) if length <= test_size]
        if len(short) == len(self.table.ids):
            raise UserError(
                f"n_windows={self.n_windows} windows of h={self.h} steps, step_size={self.step_size} apart, need "
                f"series of {test_size + 1} steps or more; the longest has {int(self.table.lengths.max())}."
            )
        if short:
            warnings.warn(
                f"{len(short)} series are too short for all windows and are missing from some: {short[:3]}.",
                stacklevel=3,
            )

    def cutoffs(self, window: int) -> np.ndarray:
        """(B,) int64, steps of each series before its window's first; below 1 where there is no history."""
        return self.table.lengths - self.h - self.step_size * (self.n_windows - 1 - window)

    def run(self, model_for: ModelFor, wanted: Wanted, alias: str, point: str, columns: Columns) -> Any:
        """The frame of :meth:`apps.timeseries.estimator.Rimer.cross_validation`."""
        place = {key: number for number, key in enumerate(self.table.ids)}
        live: Live | None = None
        learned: Learned | None = None
        before = np.zeros(len(place), np.int64)
        series, cuts, values = [], [], []
        for window in range(self.n_windows):
            cut = self.cutoffs(window).clip(0)
            part = self.table.between(np.zeros_like(cut), cut)
            if not part.ids:
                continue
            # The first windows may lie before all series; the model of window 0 is made at the first that does not.
            if (new := model_for(0 if live is None else window, part)) is not None:
                learned, live = new, new.begin(part, self.static)
                wanted.check(learned.forecaster.quantiles)
            else:
                assert live is not None
                live = live._replace(followed=live.followed.update(self.table.between(before, cut), self.static))
            assert learned is not None
            here = np.array([place[key] for key in live.followed.ends.ids])
            values.append(live.followed.forecast(self.h, self._known(learned, here, cut)))
            series.append(here)
            cuts.append(cut[here])
            before = cut
        assert learned is not None
        numbers, ends, found = (np.concatenate(parts) for parts in (series, cuts, values))
        order = np.lexsort((ends, numbers))
        outputs = wanted.outputs(alias, found[order].reshape(-1, found.shape[-1]), learned.forecaster.quantiles, point)
        return self._frame(numbers[order], ends[order], outputs, columns)

    def _known(self, learned: Learned, here: np.ndarray, cut: np.ndarray) -> np.ndarray | None:
        """(B, h, F): the covariates known ahead, from the frame itself."""
        ahead = [self.table.extra[i][cut[i] : cut[i] + self.h] for i in here]
        return learned.covariates.of_past(np.stack(ahead))[0]

    def _frame(self, numbers: np.ndarray, ends: np.ndarray, outputs: dict[str, np.ndarray], columns: Columns) -> Any:
        """Rows of every window (W,): series number and steps before it."""
        table, h = self.table, self.h
        phase = table.phase[numbers]
        steps = (table.start[numbers] + ends)[:, None] + np.arange(h)
        stamps = table.frequency.stamps(steps.ravel(), phase.repeat(h))
        cutoff = table.frequency.stamps(steps[:, 0] - 1, phase).repeat(h)
        truth = np.concatenate([table.values[i][end : end + h] for i, end in zip(numbers, ends, strict=True)])
        ids = [table.ids[i] for i in numbers for _ in range(h)]
        beside = {"cutoff": cutoff, columns.y: truth, **outputs}
        return frame.write(ids, stamps, beside, columns, table.frequency, table.style)
