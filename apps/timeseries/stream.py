"""What a forecaster keeps of each series it follows: a value of constant size, to carry on, select, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apps.timeseries.normalise import Running
from core.atomic import replacing
from core.errors import UserError
from core.state import State


class Stream(NamedTuple):
    """B series, each at its own place. No function changes one in place.

    The half-filled patch is the end of `values`; everything else is as it was after the last whole patch.
    """

    seen: Tensor
    """(B,) int64, steps so far, missing ones included."""
    first: Tensor
    """(B,) int64, the first observed step; NEVER before there is one."""
    latest: Tensor
    """(B,) int64, the last observed step; -1 before there is one."""
    values: Tensor
    """(B, R) float64, the last R steps, each gap filled by the last value before it."""
    observed: Tensor
    """(B, R) bool."""
    start: Tensor
    """(B,) int64, time index of the first step."""
    periods: Tensor
    """(B, S) int64."""
    stats: Running
    """Of the whole patches, (B,)."""
    hidden: Tensor
    """(B, C), the backbone's output at the last whole patch."""
    backbone: State | None
    """After the last whole patch; None before any row has had one."""
    futr: Tensor | None = None
    """(B, P, F) float32, of the last P steps."""
    hist: Tensor | None = None
    """(B, P, E) float32, of the last P steps."""
    static: Tensor | None = None
    """(B, G) float32."""

    @property
    def batch(self) -> int:
        """B."""
        return len(self.seen)

    def map(self, function: Callable[[Tensor], Tensor]) -> Stream:
        """A stream of function(tensor) for every tensor."""
        parts: list[object] = []
        for part in self:
            if isinstance(part, Tensor):
                parts.append(function(part))
            elif isinstance(part, Running):
                parts.append(Running(*map(function, part)))
            else:
                parts.append(part.map(function) if isinstance(part, State) else None)
        return Stream(*parts)  # pyright: ignore[reportArgumentType]

    def select(self, rows: Tensor | list[int]) -> Stream:
        """The rows `rows`, in that order, repeats allowed."""
        return self.map(lambda x: x.index_select(0, torch.as_tensor(rows, device=x.device)))

    def to(self, device: torch.device | str) -> Stream:
        """On another device."""
        return self.map(lambda x: x.to(device))

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(x.numel() * x.element_size() for _, x in self.named_tensors())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """("values", tensor), ("stats.weight", tensor), ("backbone.0.att.wkv", tensor) and so on."""
        for name, part in zip(self._fields, self, strict=True):
            if isinstance(part, Tensor):
                yield name, part
            elif isinstance(part, Running):
                yield from ((f"{name}.{key}", x) for key, x in part._asdict().items())
            elif isinstance(part, State):
                yield from ((f"{name}.{key}", x) for key, x in part.named_tensors())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Written as safetensors, whole or not at all."""
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in self.named_tensors()}
        with replacing(Path(path)) as new:
            save_file(tensors, new, metadata={"greylag": "stream"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stream:
        """The stream that :meth:`save` wrote; raises UserError if the file holds something else."""
        try:
            tensors = load_file(path)
            own: dict[str, object] = {name: tensors[name] for name in cls._fields if name in tensors}
            own["stats"] = Running(*(tensors[f"stats.{name}"] for name in Running._fields))
            inner = {name.removeprefix("backbone."): x for name, x in tensors.items() if name.startswith("backbone.")}
            return cls(**{**own, "backbone": State.of(inner) if inner else None})
        except Exception as error:
            raise UserError(f"cannot read a forecaster's stream from {path}: {error}") from error


NEVER = torch.iinfo(torch.int64).max // 2
"""The first observed step of a series that has shown nothing."""
