"""Many series that a forecaster follows: their streams by id, carried on with new rows of a frame.

Series are followed in groups, a stream of many rows each. Updates and forecasts are exact: how series are grouped,
and in how many pieces their rows came, changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apps.timeseries.covariates import Covariates
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.frame import Table, tell
from apps.timeseries.stream import Stream
from core.checkpoint import files
from core.errors import UserError

BLOCK = 4096
"""Steps read at once: the memory that a long history takes does not grow beyond them."""
LONGEST_GAP = 10**6
INDEX = "index.json"


class Group(NamedTuple):
    """Series side by side in one stream."""

    ids: list[Hashable]
    phase: np.ndarray
    """(B,) int64, see :mod:`apps.timeseries.frequency`."""
    stream: Stream

    @property
    def end(self) -> np.ndarray:
        """(B,) int64, the index of the step after each last one."""
        return (self.stream.start + self.stream.seen).cpu().numpy()


class Ends(NamedTuple):
    """Where B series stand."""

    ids: list[Hashable]
    due: np.ndarray
    """(B,) int64, index of the step that comes next."""
    phase: np.ndarray
    """(B,) int64."""


@dataclass(frozen=True)
class Followed:
    """A forecaster's streams; a value: :meth:`update` gives another one.

    Args:
        model: in evaluation mode.
        covariates: of the model.
        seasons: season lengths in steps, as many as the model takes, 0 for none.
        group_size: the most series in one stream.
    """

    model: Forecaster
    covariates: Covariates
    seasons: tuple[int, ...]
    group_size: int
    groups: tuple[Group, ...] = ()

    @property
    def ends(self) -> Ends:
        """Where the series stand, in the order that forecasts have."""
        none = np.empty(0, np.int64)
        return Ends(
            [key for group in self.groups for key in group.ids],
            np.concatenate([none, *(group.end for group in self.groups)]),
            np.concatenate([none, *(group.phase for group in self.groups)]),
        )

    def update(self, table: Table, static: Mapping[Hashable, np.ndarray] | None = None) -> Followed:
        """With the steps of these series carried on; ids not followed yet begin here.

        Args:
            table: read with the covariates' columns and the phases known.
            static: (G,) float64 of each series that begins, as the frame has them.

        Raises:
            UserError: rows at or before a step that was seen already, or very far after.
        """
        place = {key: number for number, key in enumerate(table.ids)}
        groups = [self._carry_on(group, table, place) for group in self.groups]
        known = set(self.ends.ids)
        order = sorted((i for key, i in place.items() if key not in known), key=lambda i: len(table.values[i]))
        for first in range(0, len(order), self.group_size):
            rows = order[first : first + self.group_size]
            begun = self._begin([table.ids[i] for i in rows], table.start[rows], table.phase[rows], static)
            groups.append(self._carry_on(begun, table, place))
        return replace(self, groups=tuple(groups))

    def forecast(self, h: int, futr: np.ndarray | None = None) -> np.ndarray:
        """The next h steps of every series, (B, h, Q), in the order of :attr:`ends`; futr (B, h, F) in the same."""
        found, first = [], 0
        for group in self.groups:
            rows = slice(first, first + len(group.ids))
            first = rows.stop
            known = None if futr is None else torch.from_numpy(futr[rows]).to(self._device)
            with torch.no_grad():
                found.append(self.model.forecast(group.stream, h, known).double().cpu().numpy())
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write the streams, one safetensors file a group, and whose they are."""
        for number, group in enumerate(self.groups):
            folder.mkdir(parents=True, exist_ok=True)
            group.stream.save(folder / f"{number}.safetensors")
        about = [{"ids": group.ids, "phase": group.phase.tolist()} for group in self.groups]
        files.write_json({"groups": about}, folder / INDEX)

    def load(self, folder: Path) -> Followed:
        """The streams that :meth:`save` wrote. Raises UserError if files are missing or broken."""
        about = files.read_json(folder / INDEX)["groups"]
        groups = []
        for number, group in enumerate(about):
            stream = Stream.load(folder / f"{number}.safetensors").to(self._device)
            groups.append(Group(group["ids"], np.array(group["phase"], np.int64), stream))
        return replace(self, groups=tuple(groups))

    @property
    def _device(self) -> torch.device:
        tensor = next(self.model.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def _begin(
        self, ids: list[Hashable], start: np.ndarray, phase: np.ndarray, static: Mapping[Hashable, np.ndarray] | None
    ) -> Group:
        held = None if static is None else np.stack([static[key] for key in ids])
        fixed = self.covariates.of_static(held)
        periods = self._tensor(np.array([self.seasons] * len(ids), np.int64).reshape(len(ids), -1))
        begun = self.model.start(periods, self._tensor(start), None if fixed is None else self._tensor(fixed))
        return Group(ids, phase, begun)

    def _carry_on(self, group: Group, table: Table, place: Mapping[Hashable, int]) -> Group:
        """The group with the new steps of those of its series that have any."""
        rows = [row for row, key in enumerate(group.ids) if key in place]
        if not rows:
            return group
        numbers = [place[group.ids[row]] for row in rows]
        gaps = table.start[numbers] - group.end[rows]
        _check_order(gaps, numbers, group.end[rows], table)
        if len(rows) < len(group.ids) and group.stream.backbone is not None:
            part = self._read(group.stream.select(rows), table, numbers, gaps)
            fresh = (tensor for _, tensor in part.named_tensors())
            at = torch.tensor(rows, device=self._device)
            return group._replace(stream=group.stream.map(lambda old: old.index_copy(0, at, next(fresh))))
        all_numbers, all_gaps = [-1] * len(group.ids), np.zeros(len(group.ids), np.int64)
        for row, number, gap in zip(rows, numbers, gaps, strict=True):
            all_numbers[row], all_gaps[row] = number, gap
        return group._replace(stream=self._read(group.stream, table, all_numbers, all_gaps))

    def _read(self, stream: Stream, table: Table, numbers: Sequence[int], gaps: np.ndarray) -> Stream:
        """The stream after the series `numbers` of the table (-1: none), whose first steps come `gaps` later."""
        lengths = np.array([gap + len(table.values[i]) if i >= 0 else 0 for i, gap in zip(numbers, gaps, strict=True)])
        for first in range(0, int(lengths.max()), BLOCK):
            steps = min(BLOCK, int(lengths.max()) - first)
            values = np.full((len(numbers), steps), np.nan)
            extra = np.full((len(numbers), steps, len(self.covariates.columns)), np.nan)
            for row, (number, gap) in enumerate(zip(numbers, gaps, strict=True)):
                if number >= 0:
                    _place(values[row], table.values[number], int(gap) - first)
                    _place(extra[row], table.extra[number], int(gap) - first)
            futr, hist = self.covariates.of_past(extra)
            observed = ~np.isnan(values)
            with torch.no_grad():
                stream = self.model.update(
                    stream,
                    self._tensor(np.where(observed, values, 0.0)),
                    self._tensor(observed),
                    self._tensor((lengths - first).clip(0, steps)),
                    None if futr is None else self._tensor(futr),
                    None if hist is None else self._tensor(hist),
                )
        return stream

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _place(block: np.ndarray, steps: np.ndarray, offset: int) -> None:
    """Write what of `steps` lies in the block, when their first one is at `offset` of it."""
    have = steps[max(-offset, 0) : max(len(block) - offset, 0)]
    block[max(offset, 0) : max(offset, 0) + len(have)] = have


def _check_order(gaps: np.ndarray, numbers: Sequence[int], ends: np.ndarray, table: Table) -> None:
    for gap, number, end in zip(gaps.tolist(), numbers, ends.tolist(), strict=True):
        if 0 <= gap <= LONGEST_GAP:
            continue
        indices = np.array([table.start[number], end - 1, end])
        new, last, due = table.frequency.stamps(indices, np.repeat(table.phase[number], 3))
        told = [tell(stamp) for stamp in (new, last, due)]
        if gap < 0:
            raise UserError(
                f"The new rows of {table.ids[number]!r} begin at {told[0]}, but it was followed up to {told[1]}; "
                f"rows from {told[2]} on were expected."
            )
        raise UserError(
            f"The new rows of {table.ids[number]!r} begin at {told[0]}, {gap:,} steps after {told[1]}, the last one; "
            "a stamp must be wrong, or fit anew."
        )
