"""Forecasters that read a window: the last input_len steps again for every forecast."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.timeseries import buffers
from apps.timeseries.forecaster import Forecaster, Output
from apps.timeseries.series import Series
from apps.timeseries.stream import Stream


class WindowForecaster(Forecaster):
    """Streams by a buffer of the last `input_len` steps; more than `output_len` steps by feeding medians back.

    A subclass sets ``patch_len``, ``output_len``, ``input_len`` (a multiple of the patch) and overrides ``forward``.
    """

    kept_steps: int = 0
    """Steps to keep beside the window."""
    n_futr: int = 0
    n_hist: int = 0
    hidden_size: int = 0
    """Width of what a stream keeps of the last patch; 0 where it is read again."""

    def start(self, periods: Tensor, start: Tensor, static: Tensor | None = None) -> Stream:
        """Streams that have seen nothing; see :meth:`Forecaster.start`."""
        return buffers.empty(
            periods, start, static,
            steps=max(self.input_len or 0, self.kept_steps, self.patch_len), rows=self.input_len or self.patch_len,
            n_futr=self.n_futr, n_hist=self.n_hist, dim=self.hidden_size,
        )  # fmt: skip

    def update(
        self,
        stream: Stream,
        values: Tensor,
        observed: Tensor,
        lengths: Tensor | None = None,
        futr: Tensor | None = None,
        hist: Tensor | None = None,
    ) -> Stream:
        """The streams after n further steps; see :meth:`Forecaster.update`."""
        return buffers.push(stream, values, observed, lengths, futr, hist)

    @torch.no_grad()
    def forecast(self, stream: Stream, h: int, futr: Tensor | None = None) -> Tensor:
        """The next h steps; see :meth:`Forecaster.forecast`."""
        require_horizon(h)
        found, done, now = [], 0, stream
        middle = self.quantiles.index(0.5) if self.quantiles else 0
        while done < h:
            ahead = None if futr is None else futr[:, done:]
            part = self._ahead(now, ahead)[:, : h - done]
            found.append(part)
            done += part.shape[1]
            if done < h:
                known = None if ahead is None else ahead[:, : part.shape[1]]
                # Its own forecast stands for what has not come yet; covariates of the past alone stay as they were.
                hist = None if now.hist is None else now.hist[:, -1:].expand(-1, part.shape[1], -1)
                seen = torch.ones_like(part[..., 0], dtype=torch.bool)
                now = WindowForecaster.update(self, now, part[..., middle], seen, futr=known, hist=hist)
        quantiles = torch.cat(found, dim=1)
        return quantiles.masked_fill((stream.latest < 0)[:, None, None], torch.nan)

    def _ahead(self, stream: Stream, futr: Tensor | None) -> Tensor:
        """(B, output_len, Q) from the window that ends now."""
        steps = self.input_len
        assert steps is not None
        if stream.futr is None:
            known = None
        elif futr is None:
            known = stream.futr
        else:
            known = torch.cat((stream.futr, futr), dim=1)
        window = Series(
            stream.values[:, -steps:], stream.observed[:, -steps:], stream.start + stream.seen - steps, stream.periods,
            known, stream.hist, stream.static,
        )  # fmt: skip
        out = self._last_token(window.seen_as(window.observed))
        z = out.last(steps, self.output_len)
        return self.denormalise(z, out.loc[:, -1, :, None], out.scale[:, -1, :, None])

    def _last_token(self, window: Series) -> Output:
        """Predictions of which those of the last token are wanted; a subclass that can leaves the others out."""
        return self(window)


def require_horizon(h: int) -> None:
    """Raise ValueError unless h is a number of steps."""
    if h < 1:
        raise ValueError(f"h is {h}; a horizon of at least 1 step was expected")
