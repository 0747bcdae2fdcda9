"""One residual block: a token mixer and a channel mixer, each behind its LayerNorm."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from core.layers.context import Context

BlockState = dict[str, dict[str, Tensor]]
"""{"att": the token mixer's state, "ffn": the channel mixer's}."""


class Block(nn.Module):
    """x + att(ln1(x)), then x + ffn(ln2(x)), as in RWKV-7 (LayerNorm with bias, not RMSNorm).

    Args:
        dim: width C.
        att: a token mixer, ffn: a channel mixer, see :mod:`core.layers.registry`.
        pre_norm: a LayerNorm `ln0` before all else (the first block of a language model).
        ln_eps: of every LayerNorm.
        drop_path: probability of skipping a branch per sample while training.
        layer_scale: starting value of a learned factor per channel on each branch, none if None.
        post_norm: x + ln1(att(x)), then x + ln2(ffn(x)) instead, as in Vision-RWKV's larger models.
    """

    def __init__(
        self,
        dim: int,
        att: nn.Module,
        ffn: nn.Module,
        *,
        pre_norm: bool = False,
        ln_eps: float = 1e-5,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(dim, eps=ln_eps) if pre_norm else None
        self.ln1 = nn.LayerNorm(dim, eps=ln_eps)
        self.att = att
        self.ln2 = nn.LayerNorm(dim, eps=ln_eps)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.post_norm = post_norm
        scaled = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None

    def forward(
        self, x: Tensor, state: BlockState | None, ctx: Context, *, last: bool = False
    ) -> tuple[Tensor, BlockState, Context]:
        """x (B, T, C) -> x (B, T, C), the state after it, the context.

        last=True: only x[:, -1:] of the result is wanted; tokens that it does not need may be left out.
        """
        state = state or {}
        if self.ln0 is not None:
            x = self.ln0(x)
        y, att_state, ctx = self.att(x if self.post_norm else self.ln1(x), state.get("att"), ctx)
        y = self.ln1(y) if self.post_norm else y
        x = x + self.drop_path(y if self.gamma1 is None else y * self.gamma1)
        if last and ctx.mask is None and ctx.reset is None:
            x = x[:, -1 - getattr(self.ffn, "lookback", x.shape[1]) :]  # the channel mixer is most of a block's work
        y, ffn_state, ctx = self.ffn(x if self.post_norm else self.ln2(x), state.get("ffn"), ctx)
        y = self.ln2(y) if self.post_norm else y
        x = x + self.drop_path(y if self.gamma2 is None else y * self.gamma2)
        return x, {"att": att_state, "ffn": ffn_state}, ctx
