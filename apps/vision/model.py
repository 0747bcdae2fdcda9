"""The models that a config of this room may name, and how a config and its data become one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from apps.vision.residual_attention import ResidualAttention
from apps.vision.timm_model import timm_model
from apps.vision.vrwkv import VRWKV
from apps.vision.vrwkv7 import VRWKV7
from core.backbone import count_parameters, matching_hidden_dim
from core.errors import UserError, did_you_mean

__all__ = ["MODELS", "VRWKV7", "build_vision_model", "count_parameters", "matching_hidden_dim"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vrwkv7": VRWKV7,
    "vrwkv": VRWKV,
    "residual_attention": ResidualAttention,
    "timm": timm_model,
}
"""What a config may name; a file's content builds models through this table and nothing else."""

_FROM_DATA = ("img_size", "in_chans", "num_classes")
_FROM_RUN = ("device", "dtype")


def build_vision_model(model: dict[str, Any], data: dict[str, Any]) -> nn.Module:
    """The model of a config: its own options, and what the data decide (input size, channels, classes).

    Args:
        model: ``name`` (of :data:`MODELS`) and that class's options.
        data: a data module's ``describe()``.

    Raises:
        UserError: an unknown name or option, with the nearest known one; sizes that do not fit.
    """
    options = dict(model)
    name = options.pop("name", "vrwkv7")
    if name not in MODELS:
        raise UserError(f"There is no vision model '{name}'{did_you_mean(name, list(MODELS))}")
    taken = inspect.signature(MODELS[name]).parameters
    known = [option for option in taken if option not in (*_FROM_DATA, *_FROM_RUN)]
    for key in options:
        if key in _FROM_DATA:
            raise UserError(f"The model has no option '{key}': the data decide it.")
        if key not in known:
            raise UserError(f"The model '{name}' has no option '{key}'{did_you_mean(key, known)}")
    size = data["img_size"]
    try:
        return MODELS[name](
            img_size=size if isinstance(size, int) else (int(size[0]), int(size[1])),
            in_chans=data["in_chans"],
            num_classes=data["num_classes"],
            **options,
        )
    except ValueError as error:  # of the core's layers: names and sizes that do not fit
        raise UserError(f"The model '{name}' cannot be built: {error}") from error
