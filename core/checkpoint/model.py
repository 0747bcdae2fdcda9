"""From sizes and tensors to an RWKV7LM, and whether an RWKV7LM is plain enough for others' formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from core.checkpoint.sizes import Sizes
from core.errors import UserError
from core.layers import Block, ChannelMix, TimeMix
from core.lm import RWKV7LM

GN_EPS = 64e-5
LN_EPS = 1e-5


def build(
    sizes: Sizes,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    *,
    ln_eps: float = LN_EPS,
    gn_eps: float = GN_EPS,
) -> RWKV7LM:
    """An RWKV7LM of these sizes that holds copies of these tensors, on the CPU, in eval mode.

    Args:
        sizes: what `state` was checked against.
        state: by RWKV7LM's names.
        dtype: of the parameters; None keeps the tensors'.
        ln_eps, gn_eps: of the layer norms and of the group norm after the operator.
    """
    with torch.device("meta"):  # no memory and no initialisation for what is overwritten at once
        lm = RWKV7LM(
            sizes.vocab_size,
            sizes.dim,
            sizes.num_layers,
            head_dim=sizes.head_dim,
            backbone={
                "hidden_dim": sizes.hidden_dim,
                "ln_eps": ln_eps,
                "mixer_kwargs": {"rwkv7": {"lora_ranks": list(sizes.ranks), "gn_eps": gn_eps}},
            },
        )
    return fill(lm, state, dtype)


def fill(lm: RWKV7LM, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> RWKV7LM:
    """Give a model built on the meta device copies of its tensors; it comes back in eval mode."""
    copies = {name: tensor.to("cpu", dtype or tensor.dtype, copy=True).contiguous() for name, tensor in state.items()}
    lm.load_state_dict(copies, strict=True, assign=True)
    return lm.eval()


def require_plain(lm: RWKV7LM, target: str, *, gn_eps_per_head_dim: bool = False) -> None:
    """Refuse a model whose tensors would fit another format but whose arithmetic would not.

    Args:
        lm: the model.
        target: the format, as an error shall call it.
        gn_eps_per_head_dim: the format's group-norm eps is head_dim * (the layer norms' eps), not 64e-5.

    Raises:
        UserError: names the first difference.
    """
    for layer, block in enumerate(lm.backbone.blocks):
        assert isinstance(block, Block)
        for difference in _differences(block, gn_eps_per_head_dim):
            raise UserError(f"{target} cannot hold this model: layer {layer} has {difference}.")


def _differences(block: Block, gn_eps_per_head_dim: bool) -> Iterator[str]:
    att, ffn, ln_eps = block.att, block.ffn, block.ln1.eps
    if not isinstance(att, TimeMix) or not isinstance(ffn, ChannelMix):
        yield f"{type(att).__name__} and {type(ffn).__name__}, expected TimeMix and ChannelMix"
        return
    gn_eps = att.head_dim * ln_eps if gn_eps_per_head_dim else GN_EPS
    if abs(att.gn_eps / gn_eps - 1) > 1e-6:
        yield f"gn_eps {att.gn_eps:g}, expected {gn_eps:g}"
    if not gn_eps_per_head_dim and abs(ln_eps / LN_EPS - 1) > 1e-6:
        yield f"ln_eps {ln_eps:g}, expected {LN_EPS:g}"
    found = {
        "scan": (att.scan.orders, ("forward",)),
        "token_shift": (att.token_shift.kind, "causal"),
        "channel mix token_shift": (ffn.token_shift.kind, "causal"),
        "iclr_scale": (att.iclr_scale, 1.0),
        "rope_theta": (att.rope_theta, None),
        "wkv_edit": (att.wkv_edit, None),
        "readout": (att.readout, None),
    }
    yield from (f"{name} {value!r}, expected {plain!r}" for name, (value, plain) in found.items() if value != plain)
