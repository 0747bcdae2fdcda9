"""Named parts that configs choose from: token mixers and channel mixers."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


class Registry(dict[str, Callable[..., nn.Module]]):
    """Name -> factory; a wrong name is answered with the right ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that enters a class or function under `name`; raises ValueError if the name is taken."""

        def enter(factory: Factory) -> Factory:
            if name in self:
                raise ValueError(f"the {self.kind} {name!r} is registered already, as {self[name]!r}")
            self[name] = factory
            return factory

        return enter

    def build(self, name: str, *args: object, **kwargs: object) -> nn.Module:
        """The part of that name; raises ValueError naming the choices if there is none."""
        if name not in self:
            near = difflib.get_close_matches(name, self, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown {self.kind} {name!r}: {hint}choose one of {', '.join(sorted(self))}")
        return self[name](*args, **kwargs)


token_mixers = Registry("token mixer")
"""Modules ``(x (B, T, C), state, ctx) -> (y (B, T, C), state, ctx)``, built with (dim, layer_id=, num_layers=,
head_dim=, token_shift=, scan=, ...)."""

channel_mixers = Registry("channel mixer")
"""Modules of the same call, built with (dim, layer_id=, num_layers=, token_shift=, ...)."""
