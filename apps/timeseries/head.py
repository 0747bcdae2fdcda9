"""From a token's features to quantiles of every slot that it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4,
    0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99,
)  # fmt: skip
"""The 21 quantile levels; the bounds of 50, 60, 70, 80, 90, 95 and 98 % intervals are among them."""
_START_SPREAD = 0.5  # of the first quantiles, in standard deviations of the history


def checked_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels as a tuple; ValueError unless they rise strictly inside (0, 1) and hold the median."""
    found = tuple(float(level) for level in levels)
    rising = all(low < high for low, high in pairwise(found))
    if found and not (rising and found[0] > 0 and found[-1] < 1 and 0.5 in found):
        raise ValueError(
            f"quantiles are {list(levels)}; rising levels between 0 and 1 with 0.5 among them were expected"
        )
    return found


class QuantileHead(nn.Module):
    """A linear map to the median and to the steps between neighbouring quantiles, which are positive: none cross.

    Args:
        dim: features.
        slots: predicted by each token.
        levels: quantile levels; () for a point forecast, one number a slot.
    """

    def __init__(self, dim: int, slots: int, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        self.levels = checked_levels(levels)
        self.slots, self.width = slots, max(1, len(self.levels))
        self.middle = self.levels.index(0.5) if self.levels else 0
        self.out = nn.Linear(dim, slots * self.width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at nothing but the spread of a normal distribution."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if self.levels:
            normal = torch.tensor([NormalDist().inv_cdf(level) for level in self.levels])
            gaps = _START_SPREAD * normal.diff()
            bias = self.out.bias.view(self.slots, self.width)
            start = gaps + torch.log(-torch.expm1(-gaps))  # softplus's inverse
            bias[:, : self.middle] = start[: self.middle]
            bias[:, self.middle + 1 :] = start[self.middle :]

    def forward(self, x: Tensor, centre: Tensor, unit: Tensor | None = None) -> Tensor:
        """Features (..., dim) and what the median is added to (..., slots) -> (..., slots, Q), rising along Q.

        With a `unit` (...) all that is added is counted in it.
        """
        raw = self.out(x).unflatten(-1, (self.slots, self.width))
        unit = None if unit is None else unit[..., None]
        median = raw[..., self.middle] * (1.0 if unit is None else unit) + centre
        if not self.levels:
            return median[..., None]
        gaps = F.softplus(raw) if unit is None else F.softplus(raw) * unit[..., None]
        below = gaps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        above = gaps[..., self.middle + 1 :].cumsum(-1)
        median = median[..., None]
        return torch.cat((median - below, median, median + above), dim=-1)
