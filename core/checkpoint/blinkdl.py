"""BlinkDL's ``.pth`` checkpoints (BlinkDL/RWKV-LM ``RWKV-v7``, the Hub's ``rwkv-7-*``), read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.checkpoint.files import read_torch_file, write_torch_file
from core.checkpoint.model import build, require_plain
from core.checkpoint.sizes import Sizes, Spell, check_fit, expected_shapes, read_sizes
from core.lm import RWKV7LM

UNUSED = tuple(f"blocks.0.att.v{i}" for i in range(3))
"""Layer 0's value-residual tensors: today's trainer saves them, nothing ever reads them."""


def from_blinkdl(tensors: Mapping[str, Tensor], source: str, spell: Spell = str) -> tuple[dict[str, Tensor], Sizes]:
    """BlinkDL's names to RWKV7LM's.

    Args:
        tensors: by BlinkDL's names; layer 0's unused v0, v1, v2 may be there.
        source: what to call the file in an error.
        spell: what to call its tensors there, if the file has other names.

    Returns:
        (state dict of RWKV7LM, sizes); the tensors are the same objects.

    Raises:
        UserError: another architecture, or tensors missing, left over or of the wrong shape.
    """
    used = {name: tensor for name, tensor in tensors.items() if name not in UNUSED}
    sizes = read_sizes(used, source, spell)
    expected = expected_shapes(sizes)
    check_fit(used, expected, source, spell)
    return {_ours(name): used[name] for name in expected}, sizes


def to_blinkdl(state: Mapping[str, Tensor], source: str = "this model") -> dict[str, Tensor]:
    """RWKV7LM's state dict to BlinkDL's names, in the order of a ``.pth``; the opposite of `from_blinkdl`.

    Layer 0's unused tensors are not among them: `save_blinkdl` adds them as zeros, since the official trainer
    loads strictly.

    Raises:
        UserError: the state dict is not that of a plain RWKV-7 language model.
    """
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    expected = expected_shapes(read_sizes(tensors, source))
    check_fit(tensors, expected, source)
    return {name: tensors[name] for name in expected}


def load_blinkdl(path: str | Path, dtype: torch.dtype | None = torch.float32) -> RWKV7LM:
    """An RWKV7LM from a ``.pth`` file, on the CPU, in eval mode.

    Sizes and low-rank dimensions come from the tensors' shapes. One tensor at a time is copied out of the mapped
    file, so that the peak is about one model of the wanted dtype.

    Args:
        path: the file.
        dtype: of the parameters; None keeps the file's.

    Raises:
        UserError: no such file, not readable without running code, or no plain RWKV-7 model.
    """
    path = Path(path)
    state, sizes = from_blinkdl(read_torch_file(path), str(path))
    return build(sizes, state, dtype)


def save_blinkdl(lm: RWKV7LM, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write an RWKV7LM as a ``.pth`` that RWKV-LM, the ``rwkv`` package and its relatives load.

    Args:
        lm: a plain RWKV-7 language model: `TimeMix`'s options at their defaults.
        path: the file; its folder is made.
        dtype: to store in (the Hub's files are bfloat16); None keeps the model's.

    Raises:
        UserError: the format cannot express this model.
    """
    require_plain(lm, "BlinkDL's .pth format")
    tensors = to_blinkdl(lm.state_dict())
    dim, rank = tensors["emb.weight"].shape[1], read_sizes(tensors, "this model").ranks.v
    zeros = dict(zip(UNUSED, ((1, 1, dim), (dim, rank), (rank, dim)), strict=True))
    tensors |= {name: torch.zeros(shape, dtype=tensors["emb.weight"].dtype) for name, shape in zeros.items()}
    write_torch_file({name: _stored(tensor, dtype) for name, tensor in tensors.items()}, Path(path))


def _ours(name: str) -> str:
    return name if name.startswith(("emb.", "head.")) else f"backbone.{name}"


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # A clone: a view would drag its whole storage into the file.
    return tensor.detach().to("cpu", dtype or tensor.dtype, copy=True).contiguous()
