"""A small RWKV-7 language model: embedding, backbone, head. What the parity tests and the language app stand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from core import init
from core.backbone import Backbone
from core.layers import Context
from core.layers.step import linear
from core.state import State


class RWKV7LM(nn.Module):
    """Token ids to next-token logits.

    Args:
        vocab_size: V.
        dim, num_layers, head_dim: see :class:`core.backbone.Backbone`.
        backbone: further arguments of the backbone, plain values, e.g.
            {"mixer_kwargs": {"rwkv7": {"lora_ranks": [32, 32, 32, 64]}}}.

    `config` holds these arguments: RWKV7LM(**lm.config) builds its like.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        num_layers: int,
        *,
        head_dim: int = 64,
        backbone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab_size, dim)
        options = {"pre_norm": True, **(backbone or {})}
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size, "dim": dim, "num_layers": num_layers, "head_dim": head_dim, "backbone": options
        }  # fmt: skip
        self.backbone = Backbone(dim, num_layers, head_dim=head_dim, **options)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        init.embedding_(self.emb.weight)
        init.head_(self.head.weight)

    def forward(
        self, tokens: Tensor, state: State | None = None, ctx: Context | None = None, *, last: bool = False
    ) -> tuple[Tensor, State]:
        """tokens (B, T) integer -> logits (B, T, V) and the state after the last token.

        last=True gives the logits after the last token alone, (B, 1, V): all that generation needs of a prompt, and
        the head is the largest matrix. One token at a time on a CPU without gradients takes the compiled step of
        :mod:`core.layers.step`.
        """
        x, new_state = self.backbone(self.emb(tokens), state, ctx, last=last)
        return linear(self.head, x), new_state
