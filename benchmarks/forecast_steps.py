"""One training step of a forecaster, forward and backward, as a call to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from apps.timeseries.ett import LongSet, windows
from apps.timeseries.losses import ForecastLoss
from apps.timeseries.model import build_model
from apps.timeseries.series import Series


def step_of(config: dict[str, Any], table: LongSet, batch: int) -> Callable[[], None]:
    """A step of the configured model and loss on `batch` training windows, without the optimiser's part."""
    model = build_model(config["model"])
    task, horizon, context = config["task"], config["data"]["horizon"], config["data"]["context"]
    loss = ForecastLoss(task["loss"], task["loss_space"])
    origins = table.origins("train", context, horizon)[: -(-batch // len(table.channels))]
    values = windows(table.scaled, origins, context, horizon).flatten(0, 1)[:batch]
    count = getattr(model, "num_periods", len(table.periods))
    periods = torch.tensor((*table.periods, *[0] * count)[:count], dtype=torch.int64).expand(batch, -1)
    seen = torch.ones_like(values, dtype=torch.bool)
    series = Series(values, seen, torch.zeros(batch, dtype=torch.int64), periods)

    def step() -> None:
        model.zero_grad()
        loss(model, model(series.first(context)), values, seen, seen[:, :context]).backward()

    return step
