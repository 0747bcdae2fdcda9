"""What every forecaster of this room can do, whatever is inside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from apps.timeseries.series import Series
from apps.timeseries.stream import Stream


class Output(NamedTuple):
    """Predictions of every token, as training needs them."""

    z: Tensor
    """(B, T, slots, Q) normalised, rising along Q; slot j is step ``base + j``."""
    loc: Tensor
    """(B, T, 1) float64."""
    scale: Tensor
    """(B, T, 1) float64."""
    base: Tensor
    """(B, T) int64, the step of slot 0; a slot that the token was shown is not judged."""

    def last(self, step: int, h: int) -> Tensor:
        """What the last token says of the steps from `step` on: (B, h, Q) normalised."""
        at = step - self.base[:, -1:] + torch.arange(h, device=self.base.device)
        return self.z[:, -1].gather(1, at[..., None].expand(-1, -1, self.z.shape[-1]))


class Forecaster(nn.Module):
    """Reads series patch by patch; at every patch predicts what follows, `output_len` steps beyond that patch.

    Attributes:
        patch_len: P, steps per token.
        output_len: O, steps predicted beyond a token's own patch in one go, a multiple of P.
        input_len: steps that it reads at most; None: all there are.
        quantiles: levels of the last dimension of what it predicts; () for a point forecaster.
        arcsinh: whether normalised values are squashed by arcsinh.
        part_filled: whether it forecasts from patches of which the last steps have not come yet; readers of a window
            end their patches where the series ends.
    """

    patch_len: int
    output_len: int
    input_len: int | None = None
    quantiles: tuple[float, ...] = ()
    arcsinh: bool = False
    part_filled: bool = False

    def forward(self, series: Series) -> Output:
        """Series of N steps, N a multiple of P -> predictions of all N / P tokens."""
        raise NotImplementedError

    def normalise(self, y: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Values in the data's units -> what the network sees, float32."""
        z = ((y - loc) / scale).float()
        return torch.asinh(z) if self.arcsinh else z

    def denormalise(self, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """The way back, float64."""
        z = z.double()
        return (torch.sinh(z) if self.arcsinh else z) * scale + loc

    def start(self, periods: Tensor, start: Tensor, static: Tensor | None = None) -> Stream:
        """Streams that have seen nothing.

        Args:
            periods: (B, S) int64 season lengths, 0 for none.
            start: (B,) int64 time index of the first step to come.
            static: (B, G) float32 for models with static covariates.
        """
        raise NotImplementedError

    def update(
        self,
        stream: Stream,
        values: Tensor,
        observed: Tensor,
        lengths: Tensor | None = None,
        futr: Tensor | None = None,
        hist: Tensor | None = None,
    ) -> Stream:
        """The streams after n further steps; costs what the new steps cost, however long the history is.

        Args:
            stream: B streams.
            values, observed: (B, n) float64 and bool.
            lengths: (B,) int64, how many of the n belong to each row, the rest being padding; None: all.
            futr, hist: (B, n, F) and (B, n, E) float32 covariates of these steps.
        """
        raise NotImplementedError

    def forecast(self, stream: Stream, h: int, futr: Tensor | None = None) -> Tensor:
        """The next h steps, (B, h, Q) float64 in the data's units; NaN for streams that never saw a value.

        Args:
            stream: B streams; not changed.
            h: at least 1, any number.
            futr: (B, h, F) float32, for models with covariates known ahead.
        """
        raise NotImplementedError
