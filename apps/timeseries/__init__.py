"""Forecasting with RWKV-7 (BlackGoose Rimer)."""

from core.errors import require_extra

require_extra("timeseries", "pandas", "narwhals")

from apps.timeseries.estimator import Rimer  # noqa: E402  after the sentence about what is missing
from apps.timeseries.pipeline import TimeseriesPipeline  # noqa: E402

__all__ = ["Rimer", "TimeseriesPipeline"]
