"""Walks: in which orders the operator meets the tokens of a sequence.

A walk has one order or several. Either every head takes all of them and their outputs are averaged, or they share out
the heads (`split`). Backends that know walks visit the tokens where they lie; for the others, :func:`walk_copies`
permutes copies and lets the orders ride in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ORDERS = ("forward", "backward", "down", "up")
"""Raster order, its reverse, column by column, and the reverse of that."""


class Walk(NamedTuple):
    """Orders, names of :data:`ORDERS`; whether they share out the heads; the token grid (height, width) for columns."""

    orders: tuple[str, ...] = ("forward",)
    split: bool = False
    grid: tuple[int, int] | None = None

    def plain(self) -> tuple[str, bool, int, int]:
        """As custom ops take it; :meth:`of` is the way back."""
        height, width = self.grid or (0, 0)
        return " ".join(self.orders), self.split, height, width

    @classmethod
    def of(cls, orders: str, split: bool, height: int, width: int) -> Walk:
        return cls(tuple(orders.split()), split, (height, width) if height else None)

    def states(self, heads: int) -> int:
        """Recurrences per sequence, each with a state of its own, numbered order by order."""
        return heads if self.split else heads * len(self.orders)

    def tokens(self, steps: int) -> Tensor:
        """(orders, T) int32: the token met at each step."""
        raster = torch.arange(steps, dtype=torch.int32)[None]
        return torch.cat([self.permute(raster, order) for order in self.orders])

    def resets(self, reset: Tensor) -> Tensor:
        """(B, T), True where a sequence begins in raster order -> (orders, B, T), True at the step it is entered.

        Backwards, a sequence is entered at its last token.

        Raises:
            ValueError: an order over columns, which sequences in rows cut through.
        """
        ways = {"forward": reset, "backward": F.pad(reset[:, 1:], (0, 1), value=True).flip(1)}
        for order in self.orders:
            if order not in ways:
                raise ValueError(
                    f"the order {order!r} walks over columns, which `reset` (sequences in rows) cuts through"
                )
        return torch.stack([ways[order] for order in self.orders])

    def permute(self, x: Tensor, order: str, *, inverse: bool = False) -> Tensor:
        """x (B, T, ...) from raster order into `order`, or back with inverse=True."""
        if order == "forward":
            return x
        if order == "backward":
            return x.flip(1)
        assert self.grid is not None
        height, width = self.grid
        if inverse:
            x = x.flip(1) if order == "up" else x
            return x.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        x = x.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)
        return x.flip(1) if order == "up" else x

    def check(self, steps: int, heads: int) -> None:
        """Raises ValueError for an unknown order, a grid that does not fit, heads that cannot be shared out."""
        unknown = [order for order in self.orders if order not in ORDERS]
        if unknown or not self.orders:
            raise ValueError(f"a walk's orders must be of {', '.join(ORDERS)}, got {self.orders}")
        columns = [order for order in self.orders if order in ("down", "up")]
        if columns and (self.grid is None or self.grid[0] * self.grid[1] != steps):
            raise ValueError(
                f"the order {columns[0]!r} needs the token grid: grid must be (height, width) with "
                f"height * width = {steps} tokens, got {self.grid}"
            )
        if self.split and heads % len(self.orders):
            raise ValueError(f"{len(self.orders)} orders cannot share out {heads} heads evenly")


FORWARD = Walk()

Run = Callable[..., tuple[Tensor, Tensor | None]]


def walk_copies(
    run: Run, walk: Walk, inputs: tuple[Tensor, ...], state: Tensor | None, reset: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """A walk by a backend that knows only the forward one: permuted copies, the orders riding in the batch."""
    orders = walk.orders
    count = len(orders)
    shares = [x.chunk(count, dim=2) if walk.split else (x,) * count for x in inputs]
    walked = [
        torch.cat([walk.permute(part, order) for part, order in zip(parts, orders, strict=True)]) for parts in shares
    ]
    reset = None if reset is None else walk.resets(reset).flatten(0, 1)
    state = None if state is None else torch.cat(state.chunk(count, dim=1))
    y, final = run(*walked, state, reset, return_state)
    outputs = [walk.permute(part, order, inverse=True) for part, order in zip(y.chunk(count), orders, strict=True)]
    y = torch.cat(outputs, dim=2) if walk.split else torch.stack(outputs).mean(0)
    return y, None if final is None else torch.cat(final.chunk(count), dim=1)
