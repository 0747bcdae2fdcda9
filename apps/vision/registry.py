"""The sizes of VRWKV-7, registered with timm when this module is imported.

>>> import apps.vision, timm
>>> timm.create_model("vrwkv7_tiny_patch16_224", num_classes=10, scan="split2")

Tiny, small, base and large have the width and depth of Vision-RWKV's T, S, B and L (arXiv 2403.02308, table 1).
Nano is ours: tiny's depth at two thirds of its width, the smallest that has four heads of 32 channels, so that its
heads can still be divided among four directions.

There are no trained weights yet: ``pretrained=True`` takes a ``pretrained_cfg_overlay=dict(file=...)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from apps.vision.vrwkv7 import VRWKV7, pair

SIZES: dict[str, dict[str, int]] = {
    "nano": {"embed_dim": 128, "depth": 12, "head_dim": 32},
    "tiny": {"embed_dim": 192, "depth": 12, "head_dim": 32},
    "small": {"embed_dim": 384, "depth": 12, "head_dim": 32},
    "base": {"embed_dim": 768, "depth": 12, "head_dim": 64},
    "large": {"embed_dim": 1024, "depth": 24, "head_dim": 64},
}
"""Options of :class:`VRWKV7` by size. Heads of 32 channels give tiny six of them, an even number for two directions."""

default_cfgs = generate_default_cfgs(
    {
        f"vrwkv7_{size}_patch16_224.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            # As on timm's ViT, for its sake: the configured input size is the one the model is built for.
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
        for size in SIZES
    }
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VRWKV7) -> dict[str, Tensor]:
    """Weights made for other patch or image sizes, resampled to the model's.

    Args:
        state_dict: parameters by name, or a file's content that has them under "state_dict" or "model".
        model: whose ``pretrained_cfg["input_size"]`` says what size the weights were made for; weights of a
            square grid need not say it.

    Raises:
        ValueError: a position embedding whose grid is unknown.
    """
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    weights = dict(state_dict)
    kernel = weights.get("patch_embed.proj.weight")
    if (position := weights.get("pos_embed")) is not None:
        patch = pair(model.patch_embed.patch_size if kernel is None else kernel.shape[-2:])
        old = _trained_grid(position.shape[1], patch, model)
        if old != model.grid_size:
            weights["pos_embed"] = resample_abs_pos_embed(
                position, new_size=list(model.grid_size), old_size=list(old), num_prefix_tokens=0
            )
    if kernel is not None:
        weights["patch_embed.proj.weight"] = resample_patch_embed(kernel, list(pair(model.patch_embed.patch_size)))
    return weights


def _trained_grid(tokens: int, patch: tuple[int, int], model: VRWKV7) -> tuple[int, int]:
    """Rows and columns of a stored position embedding."""
    said = getattr(model, "pretrained_cfg", {}).get("input_size", (0, 0, 0))[-2:]
    grid = (math.ceil(said[0] / patch[0]), math.ceil(said[1] / patch[1]))
    if grid[0] * grid[1] == tokens:
        return grid
    if model.grid_size[0] * model.grid_size[1] == tokens:
        return model.grid_size
    edge = math.isqrt(tokens)
    if edge * edge != tokens:
        raise ValueError(
            f"The weights' position embedding has {tokens} tokens, and input_size {tuple(said)} would give "
            f"{grid[0]} x {grid[1]}: say the size they were trained on, "
            "pretrained_cfg_overlay=dict(input_size=(channels, height, width))."
        )
    return edge, edge


def _create(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    size = SIZES[variant.split("_")[1]]
    out_indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        VRWKV7,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**size, "patch_size": 16, **options},
    )


@register_model
def vrwkv7_nano_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """VRWKV-7 nano: width 128, depth 12, 3.1M parameters."""
    return _create("vrwkv7_nano_patch16_224", pretrained, options)


@register_model
def vrwkv7_tiny_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """VRWKV-7 tiny: width 192, depth 12, 6.5M parameters."""
    return _create("vrwkv7_tiny_patch16_224", pretrained, options)


@register_model
def vrwkv7_small_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """VRWKV-7 small: width 384, depth 12, 24.4M parameters."""
    return _create("vrwkv7_small_patch16_224", pretrained, options)


@register_model
def vrwkv7_base_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """VRWKV-7 base: width 768, depth 12, 91.9M parameters."""
    return _create("vrwkv7_base_patch16_224", pretrained, options)


@register_model
def vrwkv7_large_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """VRWKV-7 large: width 1024, depth 24, 321.6M parameters."""
    return _create("vrwkv7_large_patch16_224", pretrained, options)
