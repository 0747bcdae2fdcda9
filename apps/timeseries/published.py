"""Rimer as its authors published it: one RWKV-7 block over one token, the whole window being the patch.

Source: BlackGoose Rimer (arXiv 2503.06121), models/Timer.py and layers/RWKV_7.py of Alic-Li/BlackGoose_Rimer at
6d6757a. With one token the recurrence never recurs; a row of the studies, not a model to use. The authors predict a
window of the input's length, one row further; here the last map goes to the steps ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.timeseries.one_window import OneWindowForecaster
from core.layers import Block, Context, TimeMix


class PublishedRimer(OneWindowForecaster):
    """A window's values -> Linear -> + position -> RWKV-7 block -> Linear -> the steps ahead.

    Args:
        input_len, output_len: L and O.
        dim: 512 in every published configuration.
        head_dim: 64 there.

    Raises:
        ValueError: sizes that do not fit.
    """

    position: Tensor

    def __init__(self, input_len: int = 512, output_len: int = 96, dim: int = 512, head_dim: int = 64) -> None:
        super().__init__(input_len, output_len)
        self.embed = nn.Linear(input_len, dim, bias=False)
        # Sines and cosines of position 0.
        self.register_buffer("position", torch.arange(dim).remainder(2).float(), persistent=False)
        att = TimeMix(dim, head_dim=head_dim, lora_ranks=(64, 64, 32, 128), value_residual=False)
        self.block = Block(dim, att, LinearMix(dim))
        self.out = nn.Linear(dim, output_len)

    def ahead(self, windows: Tensor, periods: Tensor) -> Tensor:
        """Windows (B, L) -> (B, O)."""
        del periods
        x = (self.embed(windows) + self.position)[:, None]
        x, _, _ = self.block(x, None, Context(keep_state=False))
        return self.out(x[:, 0])


class LinearMix(nn.Module):
    """The published "channel mix": a linear map, without token shift, width or activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None, ctx: Context
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C) -> (B, T, C); there is no state."""
        del state
        return self.linear(x), {}, ctx
