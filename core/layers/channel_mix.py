"""Channel mixers: RWKV-7's squared-ReLU network and the transformer's MLP.

Source: BlinkDL/RWKV-LM ``RWKV-v7/train_temp/src/model.py`` (RWKV_CMix_x070); ViT (arXiv 2010.11929) for the MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import init
from core.layers.context import Context
from core.layers.registry import channel_mixers
from core.layers.token_shift import TokenShift, mix_shift


@channel_mixers.register("rwkv7")
class ChannelMix(nn.Module):
    """value(relu(key(x + (shift(x) - x) x_k))^2); state {"shift": (B, C)} if the shift is causal.

    Args:
        dim: width C.
        layer_id, num_layers: place in the stack, for the initialisation.
        hidden_dim: 4 C if None.
        token_shift: a name of :data:`core.layers.token_shift.TOKEN_SHIFTS`.
        shift_heads: into how many groups a quad shift divides the channels.
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
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.depth = init.Depth(layer_id, num_layers)
        self.token_shift = TokenShift(token_shift, shift_heads)
        if token_shift in ("causal", "none"):
            self.lookback = int(token_shift == "causal")
            """Tokens before the last one that its output depends on; absent: any, before or after it."""
        self.x_k = nn.Parameter(torch.empty(1, 1, dim)) if token_shift != "none" else None
        self.key = nn.Linear(dim, hidden_dim, bias=False)
        self.value = nn.Linear(hidden_dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """RWKV-7's starting values: an orthogonal key, a zero value."""
        if self.x_k is not None:
            self.x_k.copy_(init.channel_mix_vector(self.x_k.numel(), self.depth).view_as(self.x_k))
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), the state after it, the context unchanged."""
        ctx = ctx or Context()
        shifted, new_state = self.token_shift(x, state, ctx)
        hidden = F.relu(self.key(mix_shift(x, shifted, self.x_k)), inplace=True)  # the widest tensors of all
        hidden = hidden.square() if torch.is_grad_enabled() else hidden.square_()
        return self.value(hidden), new_state if ctx.keep_state else {}, ctx


@channel_mixers.register("mlp")
class MLP(nn.Module):
    """The transformer's two layers with GELU, biases, no token shift (accepted and not used) and no state."""

    lookback = 0

    def __init__(
        self,
        dim: int,
        *,
        layer_id: int = 0,
        num_layers: int = 1,
        hidden_dim: int | None = None,
        token_shift: str = "none",
        shift_heads: int = 1,
    ) -> None:
        super().__init__()
        del layer_id, num_layers, token_shift, shift_heads
        self.fc1 = nn.Linear(dim, hidden_dim or 4 * dim)
        self.fc2 = nn.Linear(hidden_dim or 4 * dim, dim)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), no state, the context unchanged."""
        return self.fc2(F.gelu(self.fc1(x))), {}, ctx or Context()
