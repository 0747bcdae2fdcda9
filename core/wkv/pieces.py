"""A batch with resets, one piece between two resets after the other: for rows in which something is not finite.

In a chunk's matrix products an infinite value or a NaN would pass every reset of its chunk, since 0 x inf is NaN.
Piece by piece nothing is multiplied across a reset. That is slow, and only worth it for numbers gone wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, ...]]


class _Piece(NamedTuple):
    steps: slice
    fresh: bool  # begins with a reset

    def of(self, x: Tensor, row: int) -> Tensor:
        """(B, T, ...) -> (1, steps, ...)."""
        return x[row : row + 1, self.steps]


def _pieces(marks: Tensor) -> list[_Piece]:
    starts = [t for t, mark in enumerate(marks.tolist()) if mark or t == 0]
    ends = [*starts[1:], len(marks)]
    return [_Piece(slice(start, end), bool(marks[start])) for start, end in zip(starts, ends, strict=True)]


def spoilt_rows(*tensors: Tensor) -> list[int]:
    """The batch rows in which a value is not finite (or a sum of finite ones overflows)."""
    if all(x.sum().isfinite() for x in tensors):  # nearly always, at the cost of reading
        return []
    rows = torch.stack([~x.flatten(1).sum(1).isfinite() for x in tensors]).any(0)
    return rows.nonzero().flatten().tolist()


def forward_row(
    forward: Forward, row: int, inputs: Sequence[Tensor], state: Tensor | None, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """y (1, T, H, V) and the final state (1, H, V, K) of one row."""
    current, ys = None if state is None else state[row : row + 1], []
    for piece in _pieces(reset[row]):
        first = None if piece.fresh else current
        y, current, *_ = forward(*(piece.of(x, row) for x in inputs), first, None, True, False)
        ys.append(y)
    assert current is not None
    return torch.cat(ys, dim=1), current


def backward_row(
    forward: Forward,
    backward: Backward,
    row: int,
    dy: Tensor | None,
    dfinal: Tensor | None,
    inputs: Sequence[Tensor],
    state: Tensor,
    reset: Tensor,
) -> list[Tensor]:
    """Gradients of one row's inputs (1, T, H, ...) and of its initial state (1, H, V, K)."""
    pieces, saved, current = _pieces(reset[row]), [], state[row : row + 1]
    for piece in pieces:
        first = None if piece.fresh else current
        _, current, *rest = forward(*(piece.of(x, row) for x in inputs), first, None, True, True)
        saved.append(rest)
    grads: list[Sequence[Tensor]] = []
    dstate = None if dfinal is None else dfinal[row : row + 1]
    for piece, rest in zip(reversed(pieces), reversed(saved), strict=True):
        given = None if dy is None else piece.of(dy, row)
        *some, dstate = backward(given, dstate, *(piece.of(x, row) for x in inputs), None, *rest)
        grads.append(some)
        if piece.fresh:  # what it discards has no part in anything
            dstate = None
    first = torch.zeros_like(state[row : row + 1]) if dstate is None else dstate
    return [*(torch.cat(parts[::-1], dim=1) for parts in zip(*grads, strict=True)), first]
