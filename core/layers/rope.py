"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of Llama and Qwen checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (B, T, H, D) turned by its positions (B, T) or (T,); angles in float32, D even."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[..., None, None] * rates  # (..., T, 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().split(half, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
