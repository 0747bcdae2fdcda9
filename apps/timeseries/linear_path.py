"""The closed-form ridge forecast as one more naive path of :class:`apps.timeseries.model.RimerModel`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from apps.timeseries.paths import History, Paths
from apps.timeseries.ridge import apply, fit_ridge


class RidgePath(nn.Module):
    """A matrix from the last input_len steps to the next output_len ones; zeros, and never chosen, before :meth:`fit`.

    Args:
        input_len, output_len: L and O.
    """

    weight: Tensor
    fitted: Tensor

    def __init__(self, input_len: int, output_len: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(input_len, output_len))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, rows: Iterable[Tensor], valid: Iterable[Tensor] | None = None) -> None:
        """Fit the matrix to series (N,) or (C, N) without gaps; `valid` chooses the penalty, see :func:`fit_ridge`."""
        found = fit_ridge(rows, *self.weight.shape, valid=valid, scale=valid is None)
        self.weight.copy_(found.weight)
        self.fitted.fill_(True)

    def forward(self, history: History, end: Tensor, base: Tensor, slots: int, last: Tensor) -> Paths:
        """The path of every token, (B, T, slots, 1): the values themselves before `end`, `last` beyond the matrix.

        It exists where a token knows input_len steps. Arguments as in :func:`apps.timeseries.paths.naive_paths`;
        last (B, T, slots).
        """
        steps, ahead = self.weight.shape
        device = end.device
        available = (end - history.low >= steps) & self.fitted
        begin = (end - steps - history.offset[:, None])[..., None]
        index = (begin + torch.arange(steps, device=device)).clamp(0, history.filled.shape[1] - 1)
        windows = history.filled.gather(1, index.flatten(1)).view(index.shape)
        found = apply(self.weight, windows)
        place = base[..., None] + torch.arange(slots, device=device) - end[..., None]
        path = torch.where(place < ahead, found.gather(2, place.clamp(0, ahead - 1)), last)
        past = (base[..., None] + torch.arange(slots, device=device) - history.offset[:, None, None]).clamp(
            0, history.filled.shape[1] - 1
        )
        path = torch.where(place < 0, history.filled.gather(1, past.flatten(1)).view(past.shape), path)
        path = torch.where(available[..., None], path, last)
        return Paths(path[..., None], available[..., None])
