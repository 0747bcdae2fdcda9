"""Softmax attention, every app's baseline: torch's scaled_dot_product_attention behind the token mixer's call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.layers.context import Context
from core.layers.registry import token_mixers
from core.layers.rope import rotate


@token_mixers.register("attention")
class Attention(nn.Module):
    """Multi-head attention; causal with a key-value cache as state if scan is "forward", else over all tokens.

    Args:
        dim: width C.
        layer_id, num_layers, token_shift: accepted as every mixer's, not used.
        head_dim: size D of a head.
        scan: "forward" for causal attention; any other name means both directions.
        bias: biases on the query, key and value projection.
        rope_theta: base of a rotary position embedding, none if None.

    State: {"key", "value": (B, H, T, D), "segment": (B, T)}; a segment of -1 is padding.

    Raises:
        ValueError: dim is no multiple of head_dim.
    """

    def __init__(
        self,
        dim: int,
        *,
        layer_id: int = 0,
        num_layers: int = 1,
        head_dim: int = 64,
        token_shift: str = "none",
        scan: str = "forward",
        bias: bool = True,
        rope_theta: float | None = None,
    ) -> None:
        super().__init__()
        del layer_id, num_layers, token_shift
        if dim % head_dim:
            raise ValueError(f"dim must be a multiple of head_dim, got dim {dim} and head_dim {head_dim}")
        self.heads, self.causal, self.rope_theta = dim // head_dim, scan == "forward", rope_theta
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, ctx: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Context]:
        """x (B, T, C), normalised -> y (B, T, C), the cache after it, the context unchanged."""
        ctx = ctx or Context()
        batch, steps, _ = x.shape
        q, k, v = self.qkv(x).view(batch, steps, 3, self.heads, -1).unbind(2)
        past = state["key"].shape[2] if state else 0
        if self.rope_theta is not None:
            positions = past + torch.arange(steps, device=x.device)
            q, k = rotate(q, positions, self.rope_theta), rotate(k, positions, self.rope_theta)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        plain = not state and ctx.mask is None and ctx.reset is None
        if plain and not (self.causal and ctx.keep_state):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            return self._merge(y), {}, ctx
        segment = self._segments(x, state, ctx)
        if state:
            k, v = torch.cat((state["key"], k), dim=2), torch.cat((state["value"], v), dim=2)
        if plain:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self._allowed(segment, past))
        keep = self.causal and ctx.keep_state
        return self._merge(y), {"key": k, "value": v, "segment": segment} if keep else {}, ctx

    def _merge(self, y: Tensor) -> Tensor:
        return self.proj(y.transpose(1, 2).flatten(2))

    @staticmethod
    def _segments(x: Tensor, state: dict[str, Tensor] | None, ctx: Context) -> Tensor:
        """(B, past + T): which sequence each token belongs to, counted on from the cache's."""
        segment = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        if ctx.reset is not None:
            segment = ctx.reset.long().cumsum(dim=1)
        if state:
            segment = segment + state["segment"].amax(dim=1, keepdim=True).clamp(min=0)
        if ctx.mask is not None:
            segment = segment.masked_fill(~ctx.mask, -1)
        return torch.cat((state["segment"], segment), dim=1) if state else segment

    def _allowed(self, segment: Tensor, past: int) -> Tensor:
        """(B, 1, T, past + T) bool; padding sees only padding, so that no row of the softmax is empty."""
        allowed = segment[:, past:, None] == segment[:, None, :]
        if self.causal:
            allowed = allowed & torch.ones_like(allowed[0]).tril(past)
        return allowed[:, None]
