"""What users call: a folder or hub id in, forecasts of their series out.

pipe = TimeseriesPipeline.from_pretrained("runs/timeseries/co2/<time>/model")
pipe(frame, h=26, level=[80])
"""

from __future__ import annotations

from typing import Any

from torch import nn

from apps.timeseries.model import build_model
from core.errors import UserError
from core.pipeline import Pipeline


class TimeseriesPipeline(Pipeline):
    """A forecaster with everything around it: frames, frequencies, covariates, intervals."""

    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        """The architecture with fresh weights; through the app's own table, never a name from the file."""
        if missing := [key for key in ("model", "data") if not isinstance(config.get(key), dict)]:
            raise UserError(f"The model's config.json has no '{missing[0]}'; it was not written by Greylag.")
        return build_model(config["model"])
