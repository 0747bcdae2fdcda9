"""The official Vision-RWKV checkpoints (Hugging Face ``OpenGVLab/Vision-RWKV``, ``vrwkv_*.pth``), read and written.

Names, {i} counting blocks from 0; shapes are the same on both sides:

==============================================  ================================  ==================================
official                                        :class:`VRWKV`                    remarks
==============================================  ================================  ==================================
backbone.patch_embed.projection.{weight,bias}   patch_embed.proj.{weight,bias}
backbone.pos_embed                              pos_embed                         (1, N, C), no class token
backbone.layers.0.ln0.*                         backbone.blocks.0.ln0.*           on the embedded patches
backbone.layers.{i}.{ln1,ln2}.*                 backbone.blocks.{i}.{ln1,ln2}.*   behind the branches in S, B and L
backbone.layers.{i}.{gamma1,gamma2}             backbone.blocks.{i}.*             S, B and L
backbone.layers.{i}.att.*, .ffn.*               backbone.blocks.{i}.att.*, .ffn.* same names inside
backbone.ln1.*                                  backbone.ln_out.*                 the last norm
head.fc.{weight,bias}                           head.{weight,bias}                T, S and B; also head.{weight,bias}
head.{0,2}.{weight,bias}                        head.{0,2}.{weight,bias}          L: two layers with tanh between
==============================================  ================================  ==================================

Every size is read from the tensors. Pre- or post-norm leaves no trace in them: the released models are post-norm
exactly where they have gamma1, and so it is assumed unless told. VRWKV6 files are another architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from apps.vision.model import build_vision_model
from apps.vision.pipeline import VisionPipeline
from apps.vision.vrwkv import VRWKV
from core.checkpoint.files import read_torch_file, write_torch_file
from core.checkpoint.sizes import check_fit
from core.errors import UserError

_TO_OURS = (
    (r"backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"backbone\.pos_embed$", "pos_embed"),
    (r"backbone\.layers\.(\d+)\.", r"backbone.blocks.\1."),
    (r"backbone\.ln1\.", "backbone.ln_out."),
    (r"head\.fc\.", "head."),
)
_TO_OFFICIAL = (
    (r"patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"pos_embed$", "backbone.pos_embed"),
    (r"backbone\.blocks\.(\d+)\.", r"backbone.layers.\1."),
    (r"backbone\.ln_out\.", "backbone.ln1."),
    (r"head\.(?=weight|bias)", "head.fc."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name


def from_official_name(name: str) -> str:
    """A tensor's official name to ours; a name that neither has stays as it is, to be reported as left over."""
    return _renamed(name, _TO_OURS)


def to_official_name(name: str) -> str:
    """The opposite of `from_official_name`."""
    return _renamed(name, _TO_OFFICIAL)


def official_options(tensors: Mapping[str, Tensor], source: str = "the file") -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint's tensors say about the model.

    Args:
        tensors: by official names.
        source: what to call the file in an error.

    Returns:
        (options of :class:`VRWKV` with its "name", what the data would decide: "img_size", "in_chans", "num_classes"),
        as :func:`apps.vision.model.build_vision_model` takes them.

    Raises:
        UserError: no Vision-RWKV checkpoint, one of VRWKV6, or one for images that are not square.
    """
    if any(".att.time_" in name for name in tensors):
        raise UserError(f"{source} is a VRWKV6 checkpoint (RWKV-6); Greylag reads those of VRWKV (RWKV-4).")

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != ndim:
            found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
            raise UserError(f"{source} is no Vision-RWKV checkpoint: {name} is {found}, expected {ndim} dimensions.")
        return tuple(tensors[name].shape)

    dim, in_chans, *patch = shape("backbone.patch_embed.projection.weight", 4)
    tokens = shape("backbone.pos_embed", 3)[1]
    edge = math.isqrt(tokens)
    if edge * edge != tokens:
        raise UserError(f"{source} has {tokens} positions, no square number; Greylag reads models of square images.")
    layers = [int(match[1]) for name in tensors if (match := re.match(r"backbone\.layers\.(\d+)\.", name))]
    hidden = shape("head.0.weight", 2)[0] if "head.0.weight" in tensors else None
    heads = ("head.2.weight", "head.fc.weight", "head.weight")
    scaled = "backbone.layers.0.gamma1" in tensors
    options = {
        "name": "vrwkv",
        "embed_dim": dim,
        "depth": max(layers, default=-1) + 1,
        "patch_size": patch,
        "hidden_dim": shape("backbone.layers.0.ffn.key.weight", 2)[0],
        "init_values": 1.0 if scaled else None,
        "post_norm": scaled,
        "key_norm": "backbone.layers.0.att.key_norm.weight" in tensors,
        "head_hidden_dim": hidden,
    }
    classes = next((shape(name, 2)[0] for name in heads if name in tensors), 0)
    return options, {"img_size": [edge * size for size in patch], "in_chans": in_chans, "num_classes": classes}


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by official names, on the CPU; wrapped in "state_dict" or "model" or bare.

    Raises:
        UserError: no such file, or one that holds more than tensors and plain values.
    """
    return read_torch_file(Path(path), within=("state_dict", "model"))


def load_official(path: str | Path, *, post_norm: bool | None = None) -> VRWKV:
    """A VRWKV with a checkpoint's weights in float32, on the CPU, in evaluation mode.

    Args:
        path: ``vrwkv_t_in1k_224.pth`` or its like.
        post_norm: see :class:`VRWKV`; None: as the released models have it.

    Raises:
        UserError: see `read_official` and `official_options`; tensors missing, left over or of another shape.
    """
    model, *_ = _load(Path(path), post_norm)
    return model


def official_pipeline(
    path: str | Path, class_names: list[str] | None = None, *, post_norm: bool | None = None
) -> VisionPipeline:
    """A checkpoint with everything around it, which ``save_pretrained`` turns into a Greylag model folder.

    Args:
        path: ``vrwkv_t_in1k_224.pth`` or its like.
        class_names: in the order of the head; None: ImageNet's for 1,000 classes, else their numbers.
        post_norm: see `load_official`.

    Raises:
        UserError: see `load_official`; a checkpoint without a head, or another number of names.
    """
    model, options, facts = _load(Path(path), post_norm)
    count = facts["num_classes"]
    if not count:
        raise UserError(f"{path} has no head, and so no classes: take load_official(path) for its features.")
    names = list(class_names) if class_names is not None else _class_names(count)
    if len(names) != count:
        raise UserError(f"class_names has {len(names)} names; {path} has {count} classes.")
    data = {
        "dataset": "ImageNet",
        "class_names": names,
        **facts,
        "mean": list(IMAGENET_DEFAULT_MEAN),
        "std": list(IMAGENET_DEFAULT_STD),
        "crop_pct": 0.875,  # its evaluation at 224: the short side to 256, bicubic, then the centre
        "interpolation": "bicubic",
    }
    return VisionPipeline(model, {"app": "vision", "name": Path(path).stem, "model": options, "data": data})


def save_official(model: VRWKV, path: str | Path) -> None:
    """Write a VRWKV under the official names, wrapped in "state_dict" as mmcv does; the opposite of `load_official`."""
    tensors = {to_official_name(name): x.detach().cpu().clone() for name, x in model.state_dict().items()}
    write_torch_file({"state_dict": tensors}, Path(path))


def _load(path: Path, post_norm: bool | None) -> tuple[VRWKV, dict[str, Any], dict[str, Any]]:
    tensors = read_official(path)
    options, facts = official_options(tensors, str(path))
    if post_norm is not None:
        options["post_norm"] = post_norm
    with torch.device("meta"):  # no memory and no initialisation for what is overwritten at once
        model = build_vision_model(options, facts)
    assert isinstance(model, VRWKV)
    found = {from_official_name(name): tensor for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    spell = {from_official_name(name): name for name in tensors}
    check_fit(found, expected, str(path), lambda name: spell.get(name, to_official_name(name)), what="Vision-RWKV")
    # Copies: the file stays mapped only as long as it is read.
    model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in found.items()}, assign=True)
    return model.eval(), options, facts


def _class_names(count: int) -> list[str]:
    if count != 1000:
        return [str(index) for index in range(count)]
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(index) for index in range(count)]
