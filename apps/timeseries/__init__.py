"""Forecasting with RWKV-7 (BlackGoose Rimer)."""

from core.errors import require_extra

require_extra("timeseries", "pandas", "utilsforecast")
