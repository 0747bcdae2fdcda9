"""A batch of series as tensors: what data modules give and forecasters take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Series(NamedTuple):
    """Series side by side, aligned at their first step; an unbatched one lacks the leading B everywhere.

    Series that end early are padded on the right with ``observed=False``.
    """

    values: Tensor
    """(B, N) float64 in the data's own units; 0 where not observed."""
    observed: Tensor
    """(B, N) bool."""
    start: Tensor
    """(B,) int64, the time index of the first step: where in its seasons a series begins."""
    periods: Tensor
    """(B, S) int64, season lengths in steps, the most important first; 0 for none."""
    futr: Tensor | None = None
    """(B, N + further steps, F) float32, standardised covariates known ahead."""
    hist: Tensor | None = None
    """(B, N, E) float32, standardised covariates known up to now; 0 where missing."""
    static: Tensor | None = None
    """(B, G) float32, standardised covariates that do not change."""

    def first(self, steps: int) -> Series:
        """The first `steps` steps of a batch; `futr` keeps what lies ahead, as it is known."""
        hist = None if self.hist is None else self.hist[:, :steps]
        return self._replace(values=self.values[:, :steps], observed=self.observed[:, :steps], hist=hist)

    def seen_as(self, visible: Tensor) -> Series:
        """The same with `visible` (B, N) bool for what is observed: hidden values become 0, as missing ones are."""
        return self._replace(values=self.values.masked_fill(~visible, 0.0), observed=visible)

    def to(self, device: torch.device | str) -> Series:
        """On another device."""
        return _series(None if part is None else part.to(device) for part in self)


def stack(items: Sequence[Series]) -> Series:
    """Unbatched series of equal lengths -> a batch; the collate function of the data modules."""
    return _series(None if part[0] is None else torch.stack(part) for part in zip(*items, strict=True))


def _series(parts: Iterable[Tensor | None]) -> Series:
    values, observed, start, periods, *covariates = parts
    assert values is not None and observed is not None and start is not None and periods is not None  # noqa: PT018
    return Series(values, observed, start, periods, *covariates)
