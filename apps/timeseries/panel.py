"""Many series of different lengths in one flat memory, from which windows are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.timeseries.series import Series
from core.errors import UserError

Array = np.ndarray


@dataclass(frozen=True)
class Panel:
    """Series end to end: one tensor per field, which worker processes share.

    Attributes:
        names: of the S series.
        values: (total,) float64, 0 where not observed.
        observed: (total,) bool.
        offsets: (S + 1,) int64; series i is ``values[offsets[i]:offsets[i + 1]]``.
        starts: (S,) int64, time index of each first step.
        periods: (p,) int64, season lengths in steps, most important first; of all series alike.
        futr: (total, F) float32, standardised covariates known ahead.
        hist: (total, E) float32, standardised covariates known up to now, 0 where missing.
        static: (S, G) float32, standardised.
    """

    names: tuple[str, ...]
    values: Tensor
    observed: Tensor
    offsets: Tensor
    starts: Tensor
    periods: Tensor
    futr: Tensor | None = None
    hist: Tensor | None = None
    static: Tensor | None = None

    @classmethod
    def of(
        cls,
        values: Sequence[Array],
        *,
        names: Sequence[str] | None = None,
        starts: Sequence[int] | Array | None = None,
        periods: Sequence[int] = (),
        futr: Sequence[Array] | None = None,
        hist: Sequence[Array] | None = None,
        static: Array | None = None,
    ) -> Panel:
        """From one array per series.

        Args:
            values: (n_i,) numbers; NaN where missing.
            names: of the series; None: 0, 1, 2, ...
            starts: time index of each first step; None: 0.
            periods: season lengths in steps.
            futr, hist: (n_i, F) and (n_i, E) per series, standardised; NaN of ``hist`` becomes 0.
            static: (S, G).

        Raises:
            UserError: no series, an infinite value, or parts of different lengths.
        """
        if not values:
            raise UserError("There are no series; expected at least one.")
        series = [torch.as_tensor(np.asarray(part), dtype=torch.float64) for part in values]
        flat = torch.cat(series)
        if bool(flat.isinf().any()):
            number = next(i for i, part in enumerate(series) if bool(part.isinf().any()))
            raise UserError(
                f"Series '{names[number] if names else number}' holds an infinite value; NaN means missing."
            )
        lengths = torch.tensor([len(part) for part in series])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(
            names=tuple(names) if names is not None else tuple(str(i) for i in range(len(series))),
            values=flat.nan_to_num(0.0),
            observed=~flat.isnan(),
            offsets=offsets,
            starts=torch.as_tensor(np.zeros(len(series)) if starts is None else np.asarray(starts)).long(),
            periods=torch.tensor(list(periods), dtype=torch.long),
            futr=_join(futr, lengths, "futr"),
            hist=_join(hist, lengths, "hist"),
            static=None if static is None else torch.as_tensor(np.asarray(static), dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> Tensor:
        """(S,) int64 steps of each series."""
        return self.offsets.diff()

    def series(self, number: int) -> tuple[Tensor, Tensor]:
        """The whole of one series: values and observed, (n,)."""
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.values[part], self.observed[part]

    def window(self, number: int, first: int, steps: int, *, end: int | None = None, ahead: int = 0) -> Series:
        """Steps ``first`` to ``first + steps`` of one series; not observed at ``end``, or the series' end, and beyond.

        ``futr`` goes on ``ahead`` steps, as far as the series has it.
        """
        base, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        begin = base + first
        limit = min(stop, base + end) if end is not None else stop
        return Series(
            values=_cut(self.values, begin, steps, limit),
            observed=_cut(self.observed, begin, steps, limit),
            start=self.starts[number] + first,
            periods=self.periods,
            futr=None if self.futr is None else _cut(self.futr, begin, steps + ahead, stop),
            hist=None if self.hist is None else _cut(self.hist, begin, steps, limit),
            static=None if self.static is None else self.static[number],
        )

    def seasonal_errors(self, period: int) -> Tensor:
        """(total,) float64: at each step the mean of |y_s - y_(s - period)| over the series' steps s before it.

        The denominator of MASE (Hyndman and Koehler 2006) for a forecast that begins at that step. Steps where either
        value is missing do not count; NaN where none counts or all are equal.
        """
        total = len(self.values)
        step = torch.arange(total) - self.offsets[:-1].repeat_interleave(self.lengths)
        before = (torch.arange(total) - period).clamp_min(0)
        counts = (step >= period) & self.observed & self.observed[before]
        errors = torch.where(counts, (self.values - self.values[before]).abs(), 0.0)
        sums, numbers = (_running(part, self.offsets, self.lengths) for part in (errors, counts.double()))
        return torch.where((numbers > 0) & (sums > 0), sums / numbers, torch.nan)


def _running(values: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
    """Sums over each series' steps before every step."""
    before = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return before[:-1] - before[offsets[:-1]].repeat_interleave(lengths)


def _join(parts: Sequence[Array] | None, lengths: Tensor, name: str) -> Tensor | None:
    if parts is None:
        return None
    for number, (part, length) in enumerate(zip(parts, lengths.tolist(), strict=True)):
        if len(part) != length:
            raise UserError(f"{name} of series {number} has {len(part)} steps; its values have {length}.")
    return torch.cat([torch.as_tensor(np.asarray(part), dtype=torch.float32) for part in parts]).nan_to_num(0.0)


def _cut(flat: Tensor, begin: int, steps: int, limit: int) -> Tensor:
    """``steps`` rows from ``begin``; zeros (False) from ``limit`` on."""
    found = flat[begin : max(begin, min(begin + steps, limit))]
    if len(found) == steps:
        return found
    return torch.cat([found, found.new_zeros(steps - len(found), *flat.shape[1:])])
