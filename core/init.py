"""RWKV-7's initialisation and parameter groups.

A bare RWKV-7 layer does not train as RWKV-7: its starting values and who gets weight decay belong to it.
Source: BlinkDL/RWKV-LM ``RWKV-v7/train_temp/src/model.py`` (the table since 2025-05) and its README.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LoRARanks(NamedTuple):
    """Ranks of the low-rank maps to decay, in-context learning rate, value residual and gate."""

    w: int
    a: int
    v: int
    g: int

    @classmethod
    def of(cls, dim: int) -> LoRARanks:
        """The current rule by width. Released checkpoints do not follow it: read theirs from tensor shapes."""
        root = math.sqrt(dim)
        return cls(*(max(32, 32 * round(factor * root / 32)) for factor in (2.5, 2.5, 1.7, 5.0)))


class Depth(NamedTuple):
    """Where a layer stands: l of L."""

    layer_id: int
    num_layers: int

    @property
    def up(self) -> float:
        """0 at the first layer, 1 at the last; 0 for a single layer, where the official code divides by zero."""
        return self.layer_id / (self.num_layers - 1) if self.num_layers > 1 else 0.0

    @property
    def down(self) -> float:
        """1 at the first layer, 1/L at the last."""
        return 1.0 - self.layer_id / self.num_layers


def _channels(dim: int) -> tuple[Tensor, Tensor]:
    """n / C, and n / (C - 1)."""
    n = torch.arange(dim, dtype=torch.float64)
    return n / dim, n / max(dim - 1, 1)


def _zigzag(dim: int, head_dim: int) -> Tensor:
    """Signed square of each channel's place in its head, -1..1."""
    middle = (head_dim - 1) / 2
    z = (torch.arange(dim, dtype=torch.float64) % head_dim - middle) / max(middle, 0.5)
    return z * z.abs()


def time_mix_vectors(dim: int, value_dim: int, head_dim: int, depth: Depth) -> dict[str, Tensor]:
    """Starting values of TimeMix's vectors, float32, (dim,) or (value_dim,) for v0 and ln_x."""
    ratio, line = _channels(dim)
    zigzag, slope = _zigzag(dim, head_dim), line - 0.5
    value_slope = _channels(value_dim)[1] - 0.5
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    vectors = {f"x_{name}": 1 - ratio ** (power * depth.down) for name, power in powers.items()}
    vectors |= {
        "w0": -6 + 6 * line ** (1 + depth.up**0.3) + 0.5 + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * slope,
        "v0": 0.73 - 0.4 * value_slope,
        "k_k": 0.71 - 0.1 * slope,
        "k_a": torch.full_like(ratio, 1.02),
        "r_k": torch.full_like(ratio, -0.04),
        "ln_x": torch.full_like(value_slope, ((1 + depth.layer_id) / depth.num_layers) ** 0.7),
    }
    return {name: value.float() for name, value in vectors.items()}


def channel_mix_vector(dim: int, depth: Depth) -> Tensor:
    """Starting value of ChannelMix's x_k, (dim,)."""
    return (1 - _channels(dim)[0] ** (depth.down**4)).float()


def lora_up_(weight: Tensor) -> Tensor:
    """The second matrix (rank, width) of a low-rank map: orthogonal, gain 0.1; the first starts at zero."""
    rows, columns = weight.shape
    return nn.init.orthogonal_(weight, gain=0.1 * math.sqrt(max(1.0, rows / columns)))


def head_(weight: Tensor) -> Tensor:
    """A language model's output matrix (vocabulary, dim)."""
    vocabulary, dim = weight.shape
    return nn.init.orthogonal_(weight, gain=0.5 * math.sqrt(max(1.0, vocabulary / dim)))


def embedding_(weight: Tensor) -> Tensor:
    """An embedding that a LayerNorm follows at once: near zero, so that learning decides its directions."""
    return nn.init.uniform_(weight, -1e-4, 1e-4)


def _group_of(name: str, parameter: nn.Parameter) -> str:
    if name.rsplit(".", 1)[-1] == "w0":
        return "decay_bias"
    wide = sum(size > 1 for size in parameter.shape) >= 2
    return "matrix" if wide and name.endswith(".weight") else "vector"


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of any model on the core: weight decay on projection matrices alone, 2x lr on w0.

    Low-rank maps, token-shift mixes, norms, biases and position embeddings are not decayed; frozen parameters
    are left out. Misplaced weight decay costs RWKV-7 a lot (train_temp/README.md).

    Args:
        module: anything whose TimeMix layers keep their parameter names.
        lr: base learning rate.
        weight_decay: for the group "matrix".

    Returns:
        Dicts with "name", "params", "lr" and "weight_decay"; empty groups are left out.
    """
    settings = {"matrix": (lr, weight_decay), "decay_bias": (2 * lr, 0.0), "vector": (lr, 0.0)}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    for name, parameter in _trainable(module):
        members[_group_of(name, parameter)].append(parameter)
    return [
        {"name": name, "params": members[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in settings.items()
        if members[name]
    ]


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
