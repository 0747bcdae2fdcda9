"""The recurrent state as a value: what a stream has seen so far, to carry on, copy, select, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.atomic import replacing
from core.errors import UserError


@dataclass(frozen=True)
class State:
    """One entry per layer, {"att": {...}, "ffn": {...}} of tensors with the batch in front.

    Tensors and nothing else, known to torch as a tree of them, so that torch.compile and torch.export take it as
    it is. No method changes a state in place.
    """

    layers: tuple[dict[str, dict[str, Tensor]], ...]

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """("3.att.wkv", tensor) and so on."""
        for index, layer in enumerate(self.layers):
            for part, tensors in layer.items():
                for name, tensor in tensors.items():
                    yield f"{index}.{part}.{name}", tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """A state of function(tensor) for every tensor."""
        return State(
            tuple(
                {part: {name: function(x) for name, x in tensors.items()} for part, tensors in layer.items()}
                for layer in self.layers
            )
        )

    def detach(self) -> State:
        """Cut from the graph: truncated backpropagation through time."""
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> State:
        """On another device; dtypes stay (wkv states are float32 on purpose)."""
        return self.map(lambda x: x.to(device))

    def select(self, rows: Tensor | list[int]) -> State:
        """The batch rows `rows`, in that order, repeats allowed (beams, samples, dropping finished streams)."""
        return self.map(lambda x: x.index_select(0, torch.as_tensor(rows, device=x.device)))

    reorder = select

    @property
    def size(self) -> int:
        """Numbers held, over all rows of the batch."""
        return sum(x.numel() for _, x in self.named_tensors())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Written as safetensors, whole or not at all."""
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in self.named_tensors()}
        with replacing(Path(path)) as new:
            save_file(tensors, new, metadata={"greylag": "state", "layers": str(len(self.layers))})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """The state that :meth:`save` wrote; raises UserError if the file holds something else."""
        try:
            tensors = load_file(path)
        except Exception as error:
            raise UserError(f"cannot read a state from {path}: {error}") from error
        try:
            return cls.of(tensors)
        except ValueError as error:
            raise UserError(f"{path} is no saved state: {error}") from error

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """The state of :meth:`named_tensors`; raises ValueError at a name of another form."""
        layers: list[dict[str, dict[str, Tensor]]] = []
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[0].count("."), item[0])):
            index, _, rest = name.partition(".")
            part, _, leaf = rest.partition(".")
            if not index.isdigit() or not leaf:
                raise ValueError(f"it holds {name!r}, expected names such as '0.att.wkv'")
            while len(layers) <= int(index):
                layers.append({"att": {}, "ffn": {}})
            layers[int(index)].setdefault(part, {})[leaf] = tensor
        return cls(tuple(layers))


torch.export.register_dataclass(State, serialized_type_name="core.state.State")
