"""Optimiser groups: the core's, divided further by layer (layer decay) or by who gets Muon."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from core.errors import UserError
from core.init import parameter_groups


def optimizer_groups(
    model: nn.Module, lr: float, weight_decay: float, *, layer_decay: float | None = None, hybrid: bool = False
) -> list[dict[str, Any]]:
    """``core.init.parameter_groups``, with the finer divisions that an optimiser was configured for.

    Args:
        model: for layer decay with timm's ``group_matcher``.
        lr: base learning rate.
        weight_decay: of the matrices.
        layer_decay: factor on the learning rate from each layer to the one below it (BEiT, arXiv 2106.08254); the
            last layer, usually the head, keeps ``lr``. None or 1: all layers learn at the same rate.
        hybrid: the optimiser is one for matrices that falls back to AdamW (timm's Muon): what is no matrix inside
            the model is marked for that, and so is the classifier, as its inventors advise
            (https://kellerjordan.github.io/posts/muon).

    Returns:
        Dicts with "name", "params", "lr", "weight_decay" and, if hybrid, "use_fallback".

    Raises:
        UserError: a factor outside (0, 1], or a model that does not say what its layers are.
    """
    groups = parameter_groups(model, lr, weight_decay)
    if hybrid:
        head = classifier_parameters(model)
        groups = [part for group in groups for part in _mark_fallback(group, head)]
    if layer_decay is None:
        return groups
    scales = layer_scales(model, layer_decay)
    return [part for group in groups for part in _by_layer(group, model, scales)]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate by parameter name: layer_decay to the power of the layers above it."""
    if not 0 < layer_decay <= 1:
        raise UserError(f"optim.layer_decay is {layer_decay:g}; a factor above 0 and up to 1 was expected, e.g. 0.75.")
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError(
            f"optim.layer_decay={layer_decay:g} needs a model that names its layers by group_matcher(), which "
            f"{type(model).__name__} lacks: optim.layer_decay=null."
        )
    layers: Any = group_parameters(model, matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {name: layer_decay ** (top - layer) for name, layer in layers.items()}


def classifier_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters of what timm's ``get_classifier`` returns; empty without one."""
    classifier = getattr(model, "get_classifier", None)
    found = classifier() if classifier is not None else None
    return {id(p) for p in found.parameters()} if isinstance(found, nn.Module) else set()


def _mark_fallback(group: dict[str, Any], head: set[int]) -> list[dict[str, Any]]:
    if group["name"] != "matrix":
        return [{**group, "use_fallback": True}]
    parts = [
        {**group, "use_fallback": False, "params": [p for p in group["params"] if id(p) not in head]},
        {**group, "use_fallback": True, "params": [p for p in group["params"] if id(p) in head], "name": "head"},
    ]
    return [part for part in parts if part["params"]]


def _by_layer(group: dict[str, Any], model: nn.Module, scales: dict[str, float]) -> list[dict[str, Any]]:
    """One group per factor, lowest first."""
    names = {id(p): name for name, p in model.named_parameters()}
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        members.setdefault(scales[names[id(parameter)]], []).append(parameter)
    return [
        {**group, "name": f"{group['name']} x{scale:.3g}", "params": params, "lr": group["lr"] * scale}
        for scale, params in sorted(members.items(), key=lambda item: item[0])
    ]
