"""Any of timm's classifiers as a model of this room: peers for comparisons, in the same trainer on the same data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from core.errors import did_you_mean

_RESERVED = frozenset(inspect.signature(timm.create_model).parameters) - {"kwargs"}
"""What timm would read weights by, or download them: a configuration may come from a stranger."""


def timm_model(
    architecture: str,
    img_size: tuple[int, int] | int = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """One of timm's registered architectures with fresh weights.

    Args:
        architecture: timm's name, e.g. "deit_tiny_patch16_224".
        img_size: in pixels, (height, width) or one number; architectures that take any size are not told.
        in_chans: image channels.
        num_classes: width of the head.
        options: of the architecture, e.g. {"patch_size": 4, "embed_dim": 128}. Plain values.

    Raises:
        ValueError: an architecture that is not registered, or an option that it does not take.
    """
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no architecture '{architecture}'{did_you_mean(architecture, timm.list_models())}")
    chosen = dict(options or {})
    if reserved := sorted(_RESERVED & set(chosen)):
        raise ValueError(f"'{reserved[0]}' is no option of an architecture; only fresh weights are made here.")
    if timm.get_pretrained_cfg(architecture, allow_unregistered=False).fixed_input_size:  # type: ignore[union-attr]
        chosen["img_size"] = img_size
    try:
        model = timm.create_model(architecture, in_chans=in_chans, num_classes=num_classes, **chosen)
    except TypeError as error:
        raise ValueError(
            f"timm's '{architecture}' does not take these options: {dict(options or {})} ({error})."
        ) from error
    model.title = f"timm's {architecture}"  # type: ignore[assignment]
    return model
