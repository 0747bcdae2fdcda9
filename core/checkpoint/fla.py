"""flash-linear-attention's RWKV7ForCausalLM folders (fla-org, Hugging Face format), read and written.

The map follows fla ``utils/convert_from_rwkv7.py`` and ``fla/models/rwkv7``. Two habits of fla's are part of the
format: its group norm's eps is head_dim * norm_eps, and with ``fuse_norm`` it normalises keys by
1/sqrt(sum + 1e-6) where RWKV-7 divides by max(norm, 1e-12); files are therefore written with ``fuse_norm`` off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoint.blinkdl import from_blinkdl, to_blinkdl
from core.checkpoint.files import read_folder, read_json, write_json, write_safetensors
from core.checkpoint.model import LN_EPS, build, require_plain
from core.checkpoint.sizes import MIXES, Sizes, read_sizes
from core.errors import UserError
from core.lm import RWKV7LM

_OUTSIDE = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_INSIDE = {
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "att.receptance": "attn.r_proj",
    "att.key": "attn.k_proj",
    "att.value": "attn.v_proj",
    "att.output": "attn.o_proj",
    "att.ln_x": "attn.g_norm",
    "ffn.key": "ffn.key",
    "ffn.value": "ffn.value",
}
_INSIDE_BACK = {theirs: ours for ours, theirs in _INSIDE.items()}
_LORA_PART = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}
_LORA_BACK = {theirs: ours for ours, theirs in _LORA_PART.items()}


def to_fla_name(name: str) -> str:
    """BlinkDL's tensor name to fla's: ``blocks.3.att.w1`` -> ``model.layers.3.attn.w_lora.lora.0.weight``.

    A name that neither has stays as it is, to be reported as left over; so in `from_fla_name`.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if not (block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name)):
        return name
    layer, inner = block.groups()
    if match := re.fullmatch(r"att\.([wavg])([012])", inner):
        return f"model.layers.{layer}.attn.{match[1]}_lora.{_LORA_PART[match[2]]}"
    module, _, parameter = inner.rpartition(".")
    if module in _INSIDE:
        return f"model.layers.{layer}.{_INSIDE[module]}.{parameter}"
    return f"model.layers.{layer}.{inner.replace('att.', 'attn.', 1)}"


def from_fla_name(name: str) -> str:
    """fla's tensor name to BlinkDL's; the opposite of `to_fla_name`."""
    if back := {theirs: ours for ours, theirs in _OUTSIDE.items()}.get(name):
        return back
    if not (match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)):
        return name
    layer, inner = match.groups()
    if lora := re.fullmatch(r"attn\.([wavg])_lora\.(lora\.[02]\.(?:weight|bias))", inner):
        return f"blocks.{layer}.att.{lora[1]}{_LORA_BACK.get(lora[2], lora[2])}"
    module, _, parameter = inner.rpartition(".")
    if module in _INSIDE_BACK:
        return f"blocks.{layer}.{_INSIDE_BACK[module]}.{parameter}"
    return f"blocks.{layer}.{inner.replace('attn.', 'att.', 1)}"


def to_fla(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BlinkDL's tensors to fla's: LoRA matrices transposed, rows (1, 1, C) to (C,) except the token-shift mixes."""
    return {to_fla_name(name): _to_fla_layout(name, tensor) for name, tensor in tensors.items()}


def _to_fla_layout(name: str, tensor: Tensor) -> Tensor:
    leaf = name.rpartition(".")[2]
    if re.fullmatch("[wavg][12]", leaf):
        return tensor.T
    if leaf in ("w0", "a0", "v0", "k_k", "k_a") or name.endswith("ffn.x_k"):
        return tensor.flatten()
    return tensor


def from_fla(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fla's tensors to BlinkDL's; the opposite of `to_fla`, and the older stacked ``x_x`` (6, C) is taken apart."""
    found: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        name = from_fla_name(theirs)
        if name.endswith(".att.x_x"):
            rows = tensor.reshape(len(MIXES), 1, 1, -1).unbind()
            found |= {f"{name.removesuffix('x_x')}x_{mix}": row for mix, row in zip(MIXES, rows, strict=True)}
        else:
            found[name] = _from_fla_layout(name, tensor)
    return found


def _from_fla_layout(name: str, tensor: Tensor) -> Tensor:
    leaf = name.rpartition(".")[2]
    if re.fullmatch("[wavg][12]", leaf):
        return tensor.T
    if leaf in ("w0", "a0", "v0", "k_k", "k_a") or re.search(r"\.x_[rwkvag]$", name):
        return tensor.reshape(1, 1, -1)
    return tensor


def load_fla(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> RWKV7LM:
    """An RWKV7LM from a folder in fla's format, on the CPU, in eval mode.

    Args:
        folder: holds config.json and model.safetensors (or its shards, or pytorch_model.bin).
        dtype: of the parameters; None keeps the file's.

    Raises:
        UserError: files are missing or broken, or the model is no plain RWKV-7.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    _check_config(config, folder / "config.json")
    tensors = from_fla(read_folder(folder))
    if config.get("tie_word_embeddings") and "emb.weight" in tensors:
        tensors.setdefault("head.weight", tensors["emb.weight"])
    if not config.get("norm_bias", True):
        _add_zero_biases(tensors)
    state, sizes = from_blinkdl(tensors, str(folder), to_fla_name)
    if sizes.head_dim != (told := config.get("head_dim") or sizes.dim // config.get("num_heads", 1)):
        raise UserError(f"{folder}: config.json says head_dim {told}, the tensors say {sizes.head_dim}.")
    norm_eps = float(config.get("norm_eps", LN_EPS))
    return build(sizes, state, dtype, ln_eps=norm_eps, gn_eps=sizes.head_dim * norm_eps)


def save_fla(lm: RWKV7LM, folder: str | Path, dtype: torch.dtype | None = None, **config: Any) -> None:
    """Write an RWKV7LM as a folder that fla's ``RWKV7ForCausalLM.from_pretrained`` loads.

    Args:
        lm: a plain RWKV-7 language model whose group-norm eps is head_dim * its layer-norm eps, as fla has it.
        folder: is made.
        dtype: to store in; None keeps the model's.
        **config: further entries of config.json, such as bos_token_id and eos_token_id.

    Raises:
        UserError: the format cannot express this model.
    """
    require_plain(lm, "fla's format", gn_eps_per_head_dim=True)
    tensors = to_blinkdl(lm.state_dict())
    sizes = read_sizes(tensors, "this model")
    stored = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype, copy=True).contiguous()
        for name, tensor in to_fla(tensors).items()
    }
    write_safetensors(stored, Path(folder) / "model.safetensors")
    dtype_name = str(stored["lm_head.weight"].dtype).removeprefix("torch.")
    norm_eps = float(lm.config["backbone"].get("ln_eps", LN_EPS))
    content = fla_config(sizes, norm_eps) | {"torch_dtype": dtype_name} | config
    write_json(content, Path(folder) / "config.json")


def fla_config(sizes: Sizes, norm_eps: float = LN_EPS) -> dict[str, Any]:
    """What config.json must say for fla's RWKV7Config to build a model of these sizes."""
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.num_layers,
        "head_dim": sizes.head_dim,
        "num_heads": sizes.num_heads,
        "intermediate_size": sizes.hidden_dim,
        "hidden_ratio": sizes.hidden_dim / sizes.dim,
        "hidden_act": "sqrelu",
        "decay_low_rank_dim": sizes.ranks.w,
        "a_low_rank_dim": sizes.ranks.a,
        "v_low_rank_dim": sizes.ranks.v,
        "gate_low_rank_dim": sizes.ranks.g,
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": norm_eps,
        "fuse_norm": False,
        "tie_word_embeddings": False,
        "attn_mode": "chunk",
    }


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what would load and then compute something else."""
    required = {"model_type": "rwkv7", "hidden_act": "sqrelu", "norm_first": True, "attn": None}
    for key, expected in required.items():
        if (found := config.get(key, expected)) != expected:
            raise UserError(f"{path}: {key} is {found!r}; Greylag reads RWKV-7 models with {key} {expected!r} alone.")


def _add_zero_biases(tensors: dict[str, Tensor]) -> None:
    """A layer norm without bias is one whose bias is zero."""
    for name in [name for name in tensors if re.search(r"(ln\d|ln_out)\.weight$", name)]:
        tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros_like(tensors[name]))
