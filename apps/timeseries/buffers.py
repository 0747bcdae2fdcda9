"""The last steps of every stream: rows of different lengths, pushed on and cut into patches without loops."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.timeseries.normalise import Running
from apps.timeseries.paths import fill_forward
from apps.timeseries.stream import NEVER, Stream


def empty(
    periods: Tensor, start: Tensor, static: Tensor | None, *, steps: int, rows: int, n_futr: int, n_hist: int, dim: int
) -> Stream:
    """Streams that have seen nothing, keeping `steps` values and `rows` rows of covariates."""
    batch, device = len(start), start.device

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, *shape, dtype=dtype, device=device)

    return Stream(
        seen=zeros(dtype=torch.int64),
        first=torch.full((batch,), NEVER, device=device),
        latest=torch.full((batch,), -1, device=device),
        values=zeros(steps, dtype=torch.float64),
        observed=zeros(steps, dtype=torch.bool),
        start=start,
        periods=periods,
        stats=Running.start(batch, device),
        hidden=zeros(dim, dtype=torch.float32),
        backbone=None,
        futr=zeros(rows, n_futr, dtype=torch.float32) if n_futr else None,
        hist=zeros(rows, n_hist, dtype=torch.float32) if n_hist else None,
        static=static,
    )


def push(
    stream: Stream, values: Tensor, observed: Tensor, lengths: Tensor | None, futr: Tensor | None, hist: Tensor | None
) -> Stream:
    """The streams with `lengths` (B,) of the n new steps (B, n) in their buffers, all n if None.

    The network's part is unchanged.
    """
    count = values.shape[1]
    if not count:
        return stream
    steps = torch.arange(count, device=values.device)
    if lengths is not None:
        observed = observed & (steps < lengths[:, None])
    some = observed.any(1)
    newest = torch.where(observed, steps, -1).amax(1)
    oldest = observed.long().argmax(1)
    filled = fill_forward(values, observed, stream.values[:, -1])
    return stream._replace(
        seen=stream.seen + (count if lengths is None else lengths),
        first=torch.where(some & (stream.first == NEVER), stream.seen + oldest, stream.first),
        latest=torch.where(some, stream.seen + newest, stream.latest),
        values=_slide(stream.values, filled, lengths),
        observed=_slide(stream.observed, observed, lengths),
        futr=None if stream.futr is None or futr is None else _slide(stream.futr, futr, lengths),
        hist=None if stream.hist is None or hist is None else _slide(stream.hist, hist, lengths),
    )


def _slide(old: Tensor, new: Tensor, lengths: Tensor | None) -> Tensor:
    """The last old.shape[1] rows of old and the first `lengths` of new, for every stream."""
    if lengths is None:
        rows = old.shape[1]
        return torch.cat((old[:, new.shape[1] :], new[:, max(0, new.shape[1] - rows) :].to(old)), dim=1)
    return take(torch.cat((old, new), dim=1), lengths, old.shape[1])


def take(x: Tensor, begin: Tensor, count: int) -> Tensor:
    """x[b, begin[b] : begin[b] + count]; the last row repeated where x ends. x (B, N, ...) -> (B, count, ...)."""
    return pick(x, begin[:, None] + torch.arange(count, device=x.device))


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]]; the last row where x ends. x (B, N, ...), index (B, n) -> (B, n, ...)."""
    index = index.clamp(max=x.shape[1] - 1)
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))
