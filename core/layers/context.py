"""What one forward pass shares between layers: padding, borders, the token grid, the first layer's value."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Context(NamedTuple):
    """Handed from layer to layer and never mutated: a layer that adds something returns ``ctx._replace(...)``.

    Lengths, positions and grids live here and nowhere else, so that one model serves any of them at once.
    """

    mask: Tensor | None = None
    """(B, T) bool, False = padding: such steps leave every state untouched and their output is meaningless."""
    reset: Tensor | None = None
    """(B, T) bool, True = a new sequence begins at this step (packed sequences, episodes)."""
    grid: tuple[int, int] | None = None
    """(height, width) of the token grid in raster order, height * width = T."""
    v_first: Tensor | None = None
    """(B, T, H, V), the value of the first RWKV-7 layer, set by it for the value residual of the others."""
    condition: Any = None
    """Free for hooks (``wkv_edit``, ``readout``): text features, a time step, a class."""
    keep_state: bool = True
    """False: no layer returns a state (encoders)."""
