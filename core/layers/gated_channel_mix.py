"""RWKV-4's channel mixing, which Vision-RWKV kept: a squared-ReLU network behind a gate of the full width.

Source: arXiv 2403.02308, section 3.3; OpenGVLab/Vision-RWKV ``classification/mmcls_custom/models/backbones/vrwkv.py``
(VRWKV_ChannelMix). Parameter names are the checkpoints'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import init
from core.layers.context import Context
from core.layers.registry import channel_mixers
from core.layers.token_shift import TokenShift, mix_shift


@channel_mixers.register("rwkv4")
class GatedChannelMix(nn.Module):
    """sigmoid(receptance(x_r)) * value(relu(key(x_k))^2); state {"shift": (B, C)} if the shift is causal.

    Args:
        dim: width C.
        layer_id, num_layers: place in the stack, for the initialisation.
        hidden_dim: 4 C if None.
        token_shift: a name of :data:`core.layers.token_shift.TOKEN_SHIFTS`.
        shift_heads: accepted as every mixer's, not used: a quad shift takes its quarters from the whole width.
        key_norm: a LayerNorm on the hidden layer (Vision-RWKV's large models).
    """

    def __init__(
        self,
        dim: int,
        *,
        layer_id: int = 0,
        num_layers: int = 1,
        hidden_dim: int | None = None,
        token_shift: str = "causal",
        shift_heads: int = 1,
        key_norm: bool = False,
    ) -> None:
        super().__init__()
        del shift_heads
        hidden_dim = hidden_dim or 4 * dim
        self.depth = init.Depth(layer_id, num_layers)
        self.token_shift = TokenShift(token_shift)
        if token_shift in ("causal", "none"):
            self.lookback = int(token_shift == "causal")
            """Tokens before the last one that its output depends on; absent: any, before or after it."""
        self.spatial_mix_k, self.spatial_mix_r = (
            nn.Parameter(torch.empty(1, 1, dim)) if token_shift != "none" else None for _ in range(2)
        )
        self.key = nn.Linear(dim, hidden_dim, bias=False)
        self.key_norm = nn.LayerNorm(hidden_dim) if key_norm else None
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden_dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Vision-RWKV's starting values ("fancy")."""
        for mix in (self.spatial_mix_k, self.spatial_mix_r):
            if mix is not None:
                ratio = torch.arange(mix.numel(), dtype=torch.float64).view_as(mix) / mix.numel()
                mix.copy_(ratio**self.depth.down)
        for linear in (self.key, self.receptance, self.value):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        if self.key_norm is not None:
            self.key_norm.reset_parameters()

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), the state after it, the context unchanged."""
        ctx = ctx or Context()
        shifted, new_state = self.token_shift(x, state, ctx)
        # The checkpoints' mix is the share of the token itself.
        xk, xr = (mix_shift(shifted, x, mix) for mix in (self.spatial_mix_k, self.spatial_mix_r))
        hidden = F.relu(self.key(xk)).square()
        if self.key_norm is not None:
            hidden = self.key_norm(hidden)
        return torch.sigmoid(self.receptance(xr)) * self.value(hidden), new_state if ctx.keep_state else {}, ctx
