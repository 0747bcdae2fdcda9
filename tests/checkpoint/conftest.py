"""A small language model with every parameter random, so that no swapped or forgotten tensor goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.lm import RWKV7LM


@pytest.fixture
def random_lm() -> Callable[..., RWKV7LM]:
    """`random_lm(vocab_size=50, dim=32, ...)`: no two low-rank dimensions are equal, none follows the rule."""

    def make(vocab_size: int = 50, dim: int = 32, num_layers: int = 3, head_dim: int = 16, **backbone: Any) -> RWKV7LM:
        torch.manual_seed(1)
        options = {"mixer_kwargs": {"rwkv7": {"lora_ranks": [4, 5, 6, 7]}}, **backbone}
        lm = RWKV7LM(vocab_size, dim, num_layers, head_dim=head_dim, backbone=options)
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.normal_(std=0.5)
        return lm.eval()

    return make
