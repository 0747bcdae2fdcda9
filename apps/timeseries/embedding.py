"""One token per patch: its values, which of them are missing, where in its seasons it lies, what is known beside it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HARMONICS = 2
_PER_PERIOD = 2 * HARMONICS + 2
_POSITION_DIM = 16
_LARGEST_JUMP = 10.0  # of a scale from one patch to the next, as a logarithm


class Tokens(NamedTuple):
    """T patches of B series, as the network sees them."""

    z: Tensor
    """(B, T, P) float32, normalised values; 0 where not visible."""
    visible: Tensor
    """(B, T, P) bool."""
    shift: Tensor
    """(B, T) float32, how far the location moved with this patch, in scales."""
    stretch: Tensor
    """(B, T) float32, logarithm of the factor by which the scale grew with this patch."""
    place: Tensor
    """(B, T) int64, patches before this one."""
    time: Tensor
    """(B, T) int64, time index of the patch's first step."""
    periods: Tensor
    """(B, S) int64, 0 for none."""
    futr: Tensor | None = None
    """(B, T, P, F) float32."""
    hist: Tensor | None = None
    """(B, T, P, E) float32."""
    static: Tensor | None = None
    """(B, G) float32."""

    def rows(self, at: slice) -> Tokens:
        """The patches of some of the series."""
        return Tokens(*(None if part is None else part[at] for part in self))  # pyright: ignore[reportArgumentType]


def movement(
    loc: Tensor, scale: Tensor, loc_before: Tensor, scale_before: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """How location and scale changed, for :class:`Tokens`: (shift, stretch), 0 where nothing was `known` before."""
    shift = torch.asinh((loc - loc_before) / scale).float()
    stretch = (scale / scale_before).log().clamp(-_LARGEST_JUMP, _LARGEST_JUMP).float()
    return shift.masked_fill(~known, 0.0), stretch.masked_fill(~known, 0.0)


def seasonal_phases(time: Tensor, periods: Tensor) -> Tensor:
    """Time indices (B, T) and periods (B, S) -> (B, T, S * 6): sines and cosines, the period itself, whether it is."""
    length = periods.clamp(min=1)[:, None]
    phase = (time[..., None] % length).double() / length * (2 * math.pi)
    there = (periods > 0)[:, None].expand(phase.shape)
    waves = [wave(n * phase) for n in range(1, HARMONICS + 1) for wave in (torch.sin, torch.cos)]
    size = length.double().log2().expand(phase.shape) / 8
    features = torch.stack((*waves, size, torch.ones_like(phase)), dim=-1).float()
    return features.masked_fill(~there[..., None], 0.0).flatten(2)


def position_code(place: Tensor, longest: int) -> Tensor:
    """(B, T) -> (B, T, 16): sines and cosines of how many patches came before; all beyond `longest` look alike."""
    count = torch.arange(_POSITION_DIM // 2, device=place.device)
    wavelength = 4.0 * max(longest, 2) ** (count / (len(count) - 1))
    angle = place.clamp(max=longest)[..., None] * (2 * math.pi / wavelength)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class PatchEmbedding(nn.Module):
    """A two-layer network beside a linear map, over all that is known of a patch.

    Args:
        patch_len: P.
        dim: width C of a token.
        num_periods: S.
        max_position: patches that have a position of their own; 0 for no position code.
        n_futr, n_hist, n_static: numbers of covariates.
    """

    def __init__(
        self,
        patch_len: int,
        dim: int,
        *,
        num_periods: int,
        max_position: int,
        n_futr: int = 0,
        n_hist: int = 0,
        n_static: int = 0,
    ) -> None:
        super().__init__()
        self.max_position = max_position
        inputs = patch_len * (2 + n_futr + n_hist) + 2 + num_periods * _PER_PERIOD + n_static
        inputs += _POSITION_DIM if max_position else 0
        self.skip = nn.Linear(inputs, dim)
        self.fc1 = nn.Linear(inputs, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens -> (B, T, C)."""
        z = tokens.z
        parts = [z, tokens.visible.to(z), tokens.shift[..., None], tokens.stretch[..., None]]
        parts.append(seasonal_phases(tokens.time, tokens.periods).to(z))
        if self.max_position:
            parts.append(position_code(tokens.place, self.max_position).to(z))
        parts += [part.flatten(2) for part in (tokens.futr, tokens.hist) if part is not None]
        if tokens.static is not None:
            parts.append(tokens.static[:, None].expand(-1, z.shape[1], -1))
        x = torch.cat(parts, dim=-1)
        return self.skip(x) + self.fc2(F.silu(self.fc1(x)))
