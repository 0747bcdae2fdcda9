"""A forecaster as plain tensors in and out, for runtimes that know nothing of streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apps.timeseries.forecaster import Forecaster
from apps.timeseries.series import Series
from core.errors import UserError


class Window(nn.Module):
    """The next ``output_len`` steps from whole patches of history.

    Args:
        model: without covariates.
        season_length: season lengths in steps.

    Raises:
        UserError: a model with covariates.
    """

    periods: Tensor

    def __init__(self, model: Forecaster, season_length: Sequence[int]) -> None:
        super().__init__()
        if any(getattr(model, name, 0) for name in ("n_futr", "n_hist", "n_static")):
            raise UserError("A forecaster with covariates cannot be exported as a graph; format=safetensors works.")
        self.model = model
        count = getattr(model, "num_periods", len(season_length))
        periods = [*season_length, *[0] * count][:count]
        self.register_buffer("periods", torch.tensor(periods, dtype=torch.int64), persistent=False)

    def forward(self, values: Tensor, start: Tensor) -> Tensor:
        """Forecasts in the values' units.

        Args:
            values: (B, N) float, N a multiple of the model's patch_len; NaN where missing.
            start: (B,) int64, the time index of the first step, for seasons: whole periods since 1970.

        Returns:
            (B, output_len, Q) of the values' type.
        """
        model = self.model
        observed = ~values.isnan()
        periods = self.periods.expand(values.shape[0], -1)
        out = model(Series(values.double().nan_to_num(0.0), observed, start, periods))
        z = out.last(values.shape[1], model.output_len)
        return model.denormalise(z, out.loc[:, -1, :, None], out.scale[:, -1, :, None]).to(values.dtype)
