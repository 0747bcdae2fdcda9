"""What a token predicts: a mixture of naive forecasts, chosen by what it has read, and what they miss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.timeseries.changes import Changes
from apps.timeseries.head import LEVELS, QuantileHead

MIXES = ("convex", "affine")
_NEAR = 1e-3  # of a scale: paths closer than this lie as good as together


class Readout(nn.Module):
    """Weights over the naive paths by slot and effects of the covariates ahead, plus a residual network that sees both.

    It starts as the plain average of the paths.

    Args:
        dim: width C of a token.
        slots: predicted by each token.
        paths: K, naive paths, the level among them.
        levels: quantile levels, () for a point forecast.
        n_futr: number of covariates known ahead.
        dropout: of the features before the last map.
        mix: "convex", weights between 0 and 1 from what the backbone has read; "affine", weights that sum to 1 and may
            be negative, so that a mixture goes beyond the paths as trends do, chosen after a look at the paths, at how
            far they lie apart and at recent changes, in whose unit the residuals are.
        num_changes: lags of the recent changes; for "affine".
    """

    def __init__(
        self,
        dim: int,
        slots: int,
        paths: int,
        levels: Sequence[float] = LEVELS,
        *,
        n_futr: int = 0,
        dropout: float = 0.0,
        mix: str = "convex",
        num_changes: int = 0,
    ) -> None:
        super().__init__()
        if mix not in MIXES:
            raise ValueError(f"mix is {mix!r}; expected one of {', '.join(MIXES)}")
        self.beyond: nn.Linear | None = None
        if mix == "affine":
            self.pairs = torch.triu_indices(paths, paths, 1)
            self.apart = nn.Linear(self.pairs.shape[1] + 2 * num_changes, dim)
            self.beyond = nn.Linear(dim, paths)
            nn.init.zeros_(self.beyond.weight)
            nn.init.zeros_(self.beyond.bias)
        self.choice = nn.Linear(dim, paths)
        self.choice_by_step = nn.Parameter(torch.zeros(slots, paths))
        nn.init.zeros_(self.choice.weight)
        nn.init.zeros_(self.choice.bias)
        self.ahead = nn.Linear(slots * (paths - 1 + n_futr), dim)
        self.effect = nn.Linear(dim, n_futr) if n_futr else None
        if self.effect is not None:
            nn.init.zeros_(self.effect.weight)
            nn.init.zeros_(self.effect.bias)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.head = QuantileHead(dim, slots, levels)

    def forward(
        self,
        x: Tensor,
        paths: Tensor,
        available: Tensor,
        futr: Tensor | None = None,
        changes: Changes | None = None,
    ) -> Tensor:
        """Predictions of every slot.

        Args:
            x: (B, T, C), the backbone's output.
            paths: (B, T, slots, K - 1) float32, normalised; the level, which is 0, is added here.
            available: (B, T, K - 1) bool.
            futr: (B, T, slots, F) float32.
            changes: for "affine".

        Returns:
            (B, T, slots, Q), rising along Q.
        """
        features = paths if futr is None else torch.cat((paths, futr), dim=-1)
        read = x + self.ahead(features.flatten(2))
        if self.beyond is not None:
            apart = self._distances(paths)
            read = read + self.apart(apart if changes is None else torch.cat((apart, changes.features), dim=-1))
        read = read + self.fc2(F.silu(self.fc1(read)))
        weight = self._weights(x if self.beyond is None else read, available)
        centre = (weight[:, :, 1:] * paths.transpose(-1, -2)).sum(2)
        if futr is not None and self.effect is not None:  # what is known of a step moves that step, alike in every slot
            centre = centre + (self.effect(x)[:, :, None] * futr).sum(-1)
        return self.head(self.dropout(read), centre, None if changes is None else changes.unit)

    def _weights(self, x: Tensor, available: Tensor) -> Tensor:
        """Of the level and the paths, (B, T, K, slots): slots last, where a CPU's softmax is ten times faster."""
        there = torch.cat((torch.ones_like(available[..., :1]), available), dim=-1)[..., None]
        choice = self.choice(x)[..., None] + self.choice_by_step.T
        weight = choice.masked_fill(~there, -torch.inf).softmax(2)
        if self.beyond is None:
            return weight
        beyond = self.beyond(x)[..., None] * there
        return weight + beyond - beyond.sum(2, keepdim=True) * weight

    def _distances(self, paths: Tensor) -> Tensor:
        """Mean distances of every two paths over the slots, as logarithms: (B, T, pairs)."""
        every = torch.cat((torch.zeros_like(paths[..., :1]), paths), dim=-1)
        one, other = self.pairs.to(every.device)
        return ((every[..., one] - every[..., other]).abs().mean(2) + _NEAR).log()
