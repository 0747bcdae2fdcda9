"""DLinear: a window's moving average and what is left of it, each through a linear map of its own.

Source: Zeng et al., Are Transformers Effective for Time Series Forecasting?, AAAI 2023 (arXiv 2205.13504), section 4;
one pair of maps for all channels, as in cure-lab/LTSF-Linear's default.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from apps.timeseries.one_window import OneWindowForecaster


class DLinear(OneWindowForecaster):
    """Linear maps of trend and remainder.

    Args:
        input_len, output_len: L and O.
        kernel: steps of the centred moving average, odd; 25 in the paper.
        window_norm: see :class:`OneWindowForecaster`; the paper has none, its sets being scaled as a whole.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, input_len: int = 512, output_len: int = 96, kernel: int = 25, window_norm: bool = True) -> None:
        super().__init__(input_len, output_len, window_norm)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.kernel = kernel
        self.trend = nn.Linear(input_len, output_len)
        self.remainder = nn.Linear(input_len, output_len)

    def ahead(self, windows: Tensor, periods: Tensor) -> Tensor:
        """Windows (B, L) -> (B, O)."""
        del periods
        smooth = moving_average(windows, self.kernel)
        return self.trend(smooth) + self.remainder(windows - smooth)


def moving_average(windows: Tensor, kernel: int) -> Tensor:
    """The centred mean of `kernel` steps, ends repeated: (B, L) -> (B, L)."""
    side = (kernel - 1) // 2
    padded = F.pad(windows[:, None], (side, side), mode="replicate")
    return F.avg_pool1d(padded, kernel, stride=1)[:, 0]
