"""Optimisers by name (timm's registry) on the core's parameter groups, and schedules counted in steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from core.errors import UserError, did_you_mean
from core.train.groups import optimizer_groups

SCHEDULES = ("cosine", "linear", "constant")
_OWN = ("name", "lr", "weight_decay", "layer_decay", "schedule", "warmup", "min_lr")
_HYBRID = ("muon", "nmuon", "adamuon", "nadamuon")
"""Those of timm's that treat matrices in their own way and all else as AdamW does."""


def build_optimizer(model: nn.Module, optim: dict[str, Any]) -> Optimizer:
    """An optimiser over ``core.init.parameter_groups``.

    Args:
        model: whose trainable parameters it gets.
        optim: "name" (any of timm's), "lr", "weight_decay", "layer_decay" (see :mod:`core.train.groups`); keys other
            than the schedule's go to the optimiser ("betas", "eps", "momentum", ...).

    Raises:
        UserError: an unknown name, or options the optimiser does not take.
    """
    name = check_name(optim)
    lr, decay = float(optim.get("lr", 1e-3)), float(optim.get("weight_decay", 0.0))
    options = {key: value for key, value in optim.items() if key not in _OWN and value is not None}
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    layer_decay = optim.get("layer_decay")
    groups = optimizer_groups(
        model, lr, decay, layer_decay=None if layer_decay is None else float(layer_decay), hybrid=name in _HYBRID
    )
    try:
        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=decay, **options)
    except TypeError as error:
        raise UserError(f"The optimiser '{name}' does not take these options of optim: {options} ({error}).") from error


def check_name(optim: dict[str, Any]) -> str:
    """The optimiser's name. Raises UserError if timm has none of that name, with the nearest."""
    name = str(optim.get("name", "adamw")).lower()
    known = [str(word) for word in list_optimizers()]
    if name not in known:
        raise UserError(f"There is no optimiser '{name}' (optim.name){did_you_mean(name, known)}")
    return name


def build_schedule(optimizer: Optimizer, optim: dict[str, Any], total_steps: float) -> LambdaLR:
    """Warm-up, then decay, one factor per optimiser step.

    Args:
        optimizer: whose groups' learning rates are multiplied.
        optim: "schedule" (cosine, linear, constant), "warmup" (steps, or a share of all steps if below 1),
            "min_lr" (the last factor, as a share of the group's learning rate).
        total_steps: optimiser steps of the whole run; infinity keeps the rate constant after warm-up.
    """
    return LambdaLR(optimizer, schedule_factor(optim, total_steps))


def schedule_factor(optim: dict[str, Any], total_steps: float) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step, see :func:`build_schedule`."""
    shape = optim.get("schedule", "cosine")
    if shape not in SCHEDULES:
        raise UserError(f"optim.schedule is {shape!r}; expected one of {', '.join(SCHEDULES)}.")
    warmup, floor = float(optim.get("warmup", 0.0)), float(optim.get("min_lr", 0.0))
    if warmup < 0 or not 0 <= floor <= 1:
        raise UserError(
            f"optim.warmup={warmup:g} must not be negative, and optim.min_lr={floor:g} is a share of optim.lr: 0 to 1."
        )
    finite = math.isfinite(total_steps)
    if warmup < 1:
        warmup = warmup * total_steps if finite else 0.0
    warmup_steps = round(warmup)
    rest = max(1.0, total_steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if shape == "constant" or not finite:
            return 1.0
        done = min(1.0, (step - warmup_steps) / rest)
        falling = 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1 - done
        return floor + (1 - floor) * falling

    return factor
