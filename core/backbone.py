"""A stack of blocks: depth, width, mixers and scans by layer, state in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.layers import Block, Context, channel_mixers, token_mixers
from core.layers.block import BlockState
from core.layers.step import step
from core.state import State

DEFAULT_CHANNEL_MIXER = {"attention": "mlp", "bi_wkv": "rwkv4"}
"""The channel mixer that belongs to a token mixer, where it is not RWKV-7's."""


def _per_layer(value: Any, num_layers: int, what: str) -> list[Any]:
    """One value for all, or a pattern that is repeated to the depth."""
    if value is None or isinstance(value, str):
        return [value] * num_layers
    pattern = list(value)
    if not pattern or num_layers % len(pattern):
        raise ValueError(f"{what} must be one name or a list whose length divides {num_layers} layers, got {pattern}")
    return pattern * (num_layers // len(pattern))


def _by_name(
    kwargs: Mapping[str, Mapping[str, Any]] | None, used: Sequence[str], what: str
) -> dict[str, dict[str, Any]]:
    """Further arguments by a mixer's name, of mixers in use alone."""
    if unused := set(kwargs or {}) - set(used):
        raise ValueError(f"{what} names {sorted(unused)}, but the layers use {sorted(set(used))}")
    return {name: dict(options) for name, options in (kwargs or {}).items()}


class Backbone(nn.Module):
    """RWKV-7 blocks, or blocks of any registered mixers.

    Args:
        dim: width C.
        num_layers: depth.
        head_dim: size of a head.
        mixer: token mixer's name, or a list of names repeated over the layers (hybrids).
        channel_mixer: channel mixer's name or list; None takes what belongs to the token mixer.
        token_shift, scan: names, see :mod:`core.layers.token_shift` and :mod:`core.layers.scan`.
        hidden_dim: of the channel mixers, 4 dim if None.
        pre_norm: a LayerNorm on the input (language models).
        final_norm: a LayerNorm `ln_out` on the output.
        ln_eps, layer_scale, post_norm: see :class:`core.layers.Block`; drop_path rises linearly from 0 to its value.
        mixer_kwargs, channel_kwargs: further arguments by token and channel mixer's name, e.g.
            {"rwkv7": {"iclr_scale": 2.0}}.

    Raises:
        ValueError: unknown names, or sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        *,
        head_dim: int = 64,
        mixer: str | Sequence[str] = "rwkv7",
        channel_mixer: str | Sequence[str] | None = None,
        token_shift: str = "causal",
        scan: str = "forward",
        hidden_dim: int | None = None,
        pre_norm: bool = False,
        final_norm: bool = True,
        ln_eps: float = 1e-5,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
        mixer_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        channel_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        mixers = _per_layer(mixer, num_layers, "mixer")
        channel = [
            name or DEFAULT_CHANNEL_MIXER.get(mixers[i], "rwkv7")
            for i, name in enumerate(_per_layer(channel_mixer, num_layers, "channel_mixer"))
        ]
        extra = _by_name(mixer_kwargs, mixers, "mixer_kwargs")
        channel_extra = _by_name(channel_kwargs, channel, "channel_kwargs")
        first = mixers.index("rwkv7") if "rwkv7" in mixers else -1
        blocks = []
        for i, name in enumerate(mixers):
            place: dict[str, Any] = {"layer_id": i, "num_layers": num_layers, "token_shift": token_shift}
            options = dict(extra.get(name, {}))
            if name == "rwkv7":
                options.setdefault("value_residual", i > first)
            att = token_mixers.build(name, dim, head_dim=head_dim, scan=scan, **place, **options)
            place |= {"hidden_dim": hidden_dim, "shift_heads": dim // head_dim, **channel_extra.get(channel[i], {})}
            ffn = channel_mixers.build(channel[i], dim, **place)
            blocks.append(
                Block(
                    dim, att, ffn, pre_norm=pre_norm and i == 0, ln_eps=ln_eps, layer_scale=layer_scale,
                    post_norm=post_norm, drop_path=drop_path * i / max(num_layers - 1, 1),
                )
            )  # fmt: skip
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(dim, eps=ln_eps) if final_norm else nn.Identity()
        self.dim, self.num_layers, self.grad_checkpointing = dim, num_layers, False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def truncate(self, num_layers: int) -> None:
        """Keep the first num_layers blocks alone."""
        self.blocks = self.blocks[:num_layers]
        self.num_layers = len(self.blocks)

    def run_block(
        self, i: int, x: Tensor, state: BlockState | None, ctx: Context, *, last: bool = False
    ) -> tuple[Tensor, BlockState, Context]:
        """Block i alone, recomputed in the backward pass where so set: for features from between the blocks."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.blocks[i], x, state, ctx, use_reentrant=False)
        return self.blocks[i](x, state, ctx, last=last)

    def forward(
        self, x: Tensor, state: State | None = None, ctx: Context | None = None, *, last: bool = False
    ) -> tuple[Tensor, State]:
        """x (B, T, C) -> y (B, T, C), with last=True (B, 1, C) for the last token alone, and the state after it.

        Args:
            x: embedded tokens.
            state: of the tokens before these; None at the beginning.
            ctx: padding, resets, the token grid, conditions.

        Raises:
            ValueError: a state of another depth, or a context that lacks what a layer needs.
        """
        ctx = ctx or Context()
        if state is not None and len(state.layers) != self.num_layers:
            raise ValueError(f"the state is of {len(state.layers)} layers, this backbone has {self.num_layers}")
        if not torch.compiler.is_compiling() and x.shape[1] == 1:
            stepped = step(self.blocks, self.ln_out, x, state, ctx)
            if stepped is not None:
                return stepped
        states = []
        for i in range(self.num_layers):
            layer_state = state.layers[i] if state is not None else None
            x, new_state, ctx = self.run_block(i, x, layer_state, ctx, last=last and i == self.num_layers - 1)
            states.append(new_state)
        return self.ln_out(x[:, -1:] if last else x), State(tuple(states))


def matching_hidden_dim(dim: int, num_layers: int, head_dim: int, **mixers: Any) -> int:
    """The channel mixers' width that gives a backbone the parameters of the RWKV-7 one (hidden 4 x dim).

    Args:
        dim, num_layers, head_dim: of both backbones.
        mixers: ``mixer``, ``channel_mixer`` and their ``*_kwargs``, see :class:`core.backbone.Backbone`.

    Returns:
        A multiple of 8, so that the two differ by at most 4 hidden units per layer; for RWKV-7 itself 4 x dim.
    """
    base = 4 * dim
    if mixers.get("mixer", "rwkv7") == "rwkv7" and mixers.get("channel_mixer") in (None, "rwkv7"):
        return base

    def size(hidden: int, **mixers: Any) -> int:
        with torch.device("meta"):
            return count_parameters(Backbone(dim, num_layers, head_dim=head_dim, hidden_dim=hidden, **mixers))

    missing = size(base) - size(base, **mixers)
    step = size(base + 8, **mixers) - size(base, **mixers)
    return max(8, base + 8 * round(missing / step))


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
