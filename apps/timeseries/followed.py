"""Many series that a forecaster follows: their streams by id, carried on with new rows of a frame.

Series are followed in groups, a stream of many rows each. Updates and forecasts are exact: how series are grouped,
and in how many pieces their rows came, changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apps.timeseries.covariates import Covariates
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.frame import Table, tell
from apps.timeseries.relay import ONE_STREAM, Relay
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
    first: np.ndarray
    """(B,) int64, index of the first step of each series; its stream may begin later (:mod:`apps.timeseries.relay`)."""
    stream: Stream

    @property
    def end(self) -> np.ndarray:
        """(B,) int64, the index of the step after each last one."""
        return (self.stream.start + self.stream.seen).cpu().numpy()

    def serves(self, relay: Relay) -> np.ndarray:
        """(B,) bool: the streams that forecast."""
        return self.stream.start.cpu().numpy() == self.first + relay.serving(self.end - self.first)

    def select(self, rows: np.ndarray) -> Group:
        """These rows (numbers)."""
        if len(rows) == len(self.ids):
            return self
        ids = [self.ids[row] for row in rows]
        return Group(ids, self.phase[rows], self.first[rows], self.stream.select(torch.from_numpy(rows)))


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
        relay: of the streams of a series.
    """

    model: Forecaster
    covariates: Covariates
    seasons: tuple[int, ...]
    group_size: int
    relay: Relay = ONE_STREAM
    groups: tuple[Group, ...] = ()

    @cached_property
    def _serving(self) -> list[Group]:
        chosen = [group.select(np.flatnonzero(group.serves(self.relay))) for group in self.groups]
        return [group for group in chosen if group.ids]

    @cached_property
    def ends(self) -> Ends:
        """Where the series stand, in the order that forecasts have."""
        none = np.empty(0, np.int64)
        return Ends(
            [key for group in self._serving for key in group.ids],
            np.concatenate([none, *(group.end for group in self._serving)]),
            np.concatenate([none, *(group.phase for group in self._serving)]),
        )

    def update(
        self, table: Table, static: Mapping[Hashable, np.ndarray] | None = None, *, to_go_on: bool = True
    ) -> Followed:
        """With the steps of these series carried on; ids not followed yet begin here.

        Args:
            table: read with the covariates' columns and the phases known.
            static: (G,) float64 of each series that begins, as the frame has them.
            to_go_on: False keeps what the next forecast needs alone.

        Raises:
            UserError: rows at or before a step that was seen already, or very far after.
        """
        place = {key: number for number, key in enumerate(table.ids)}
        due = dict(zip(self.ends.ids, self.ends.due.tolist(), strict=True))
        first = {key: int(at) for group in self.groups for key, at in zip(group.ids, group.first, strict=True)}
        fixed = self._static_of(table, static, set(due))
        _check_order(table, due)
        ends = table.end
        groups = [self._carry_on(self._without_overtaken(group, ends, place), table, place) for group in self.groups]
        begins: list[tuple[int, int]] = []
        for number, (key, end) in enumerate(zip(table.ids, ends.tolist(), strict=True)):
            zero = first.setdefault(key, int(table.start[number]))
            here = self.relay.begins(end - zero, due.get(key, zero) - zero)
            begins += [(number, zero + begin) for begin in (here if to_go_on else here[:1])]
        begins.sort(key=lambda one: ends[one[0]] - one[1])
        for at in range(0, len(begins), self.group_size):
            rows, starts = (np.array(part) for part in zip(*begins[at : at + self.group_size], strict=True))
            ids = [table.ids[row] for row in rows]
            held = None if fixed is None else np.stack([fixed[key] for key in ids])
            zeros = np.array([first[key] for key in ids], np.int64)
            begun = Group(ids, table.phase[rows], zeros, self._begin(starts, held))
            groups.append(
                begun._replace(stream=self._read(begun.stream, table, rows.tolist(), table.start[rows] - starts))
            )
        return replace(self, groups=tuple(_together([group for group in groups if group.ids], self.group_size)))

    def forecast(self, h: int, futr: np.ndarray | None = None) -> np.ndarray:
        """The next h steps of every series, (B, h, Q), in the order of :attr:`ends`; futr (B, h, F) in the same."""
        found, first = [], 0
        for group in self._serving:
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
        about = [{"ids": g.ids, "phase": g.phase.tolist(), "first": g.first.tolist()} for g in self.groups]
        files.write_json({"groups": about}, folder / INDEX)

    def load(self, folder: Path) -> Followed:
        """The streams that :meth:`save` wrote. Raises UserError if files are missing or broken."""
        about = files.read_json(folder / INDEX)["groups"]
        groups = []
        for number, group in enumerate(about):
            stream = Stream.load(folder / f"{number}.safetensors").to(self._device)
            phase, first = (np.array(group[name], np.int64) for name in ("phase", "first"))
            groups.append(Group(group["ids"], phase, first, stream))
        return replace(self, groups=tuple(groups))

    @property
    def _device(self) -> torch.device:
        tensor = next(self.model.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def _begin(self, start: np.ndarray, static: np.ndarray | None) -> Stream:
        """Streams that have seen nothing; static (B, G) as the model takes it."""
        periods = self._tensor(np.array([self.seasons] * len(start), np.int64).reshape(len(start), -1))
        return self.model.start(periods, self._tensor(start), None if static is None else self._tensor(static))

    def _static_of(
        self, table: Table, given: Mapping[Hashable, np.ndarray] | None, known: set[Hashable]
    ) -> dict[Hashable, np.ndarray] | None:
        """(G,) float32 of each series, those that are followed already as they began."""
        if not self.covariates.static:
            return None
        found = {
            key: row
            for group in self.groups
            if group.stream.static is not None
            for key, row in zip(group.ids, group.stream.static.cpu().numpy(), strict=True)
        }
        if new := [key for key in table.ids if key not in known]:
            assert given is not None
            scaled = self.covariates.of_static(np.stack([given[key] for key in new]))
            assert scaled is not None
            found |= dict(zip(new, scaled, strict=True))
        return found

    def _without_overtaken(self, group: Group, ends: np.ndarray, place: Mapping[Hashable, int]) -> Group:
        """The group less the streams that no forecast after these steps needs."""
        numbers = np.array([place.get(key, -1) for key in group.ids])
        end = np.where(numbers < 0, group.end, ends[numbers])
        needed = group.stream.start.cpu().numpy() >= group.first + self.relay.serving(end - group.first)
        return group.select(np.flatnonzero(needed))

    def _carry_on(self, group: Group, table: Table, place: Mapping[Hashable, int]) -> Group:
        """The group with the new steps of those of its series that have any."""
        rows = [row for row, key in enumerate(group.ids) if key in place]
        if not rows:
            return group
        numbers = [place[group.ids[row]] for row in rows]
        gaps = table.start[numbers] - group.end[rows]
        if len(rows) < len(group.ids):
            part = self._read(group.stream.select(rows), table, numbers, gaps)
            if _alike(part, group.stream):
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


def _alike(one: Stream, other: Stream) -> bool:
    """Whether their tensors differ in the number of rows alone (caches of attention differ in their lengths)."""
    shapes = [{name: x.shape[1:] for name, x in stream.named_tensors()} for stream in (one, other)]
    return shapes[0] == shapes[1]


def _together(groups: list[Group], size: int) -> list[Group]:
    """The same streams in fewer groups, of `size` rows at most."""
    found: list[Group] = []
    for group in sorted(groups, key=lambda group: -len(group.ids)):
        for number, other in enumerate(found):
            if len(other.ids) + len(group.ids) <= size and _alike(group.stream, other.stream):
                found[number] = _joined(other, group)
                break
        else:
            found.append(group)
    return found


def _joined(one: Group, other: Group) -> Group:
    further = (tensor for _, tensor in other.stream.named_tensors())
    stream = one.stream.map(lambda x: torch.cat((x, next(further))))
    phase, first = np.concatenate((one.phase, other.phase)), np.concatenate((one.first, other.first))
    return Group([*one.ids, *other.ids], phase, first, stream)


def _check_order(table: Table, due: Mapping[Hashable, int]) -> None:
    for number, key in enumerate(table.ids):
        gap = int(table.start[number]) - due.get(key, int(table.start[number]))
        if 0 <= gap <= LONGEST_GAP:
            continue
        indices = np.array([table.start[number], due[key] - 1, due[key]])
        new, last, wanted = (tell(t) for t in table.frequency.stamps(indices, np.repeat(table.phase[number], 3)))
        if gap < 0:
            raise UserError(
                f"The new rows of {key!r} begin at {new}, but it was followed up to {last}; rows from {wanted} on were "
                "expected."
            )
        raise UserError(
            f"The new rows of {key!r} begin at {new}, {gap:,} steps after {last}, the last one; a stamp must be wrong, "
            "or fit anew."
        )
