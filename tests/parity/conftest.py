"""A random language model as hard as a trained one: every parameter is random, logits have a std of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.lm import RWKV7LM

LOW_RANK = {f"{name}{i}" for name in "wavg" for i in (1, 2)}
MATRICES = ("receptance.weight", "key.weight", "value.weight", "output.weight")


@torch.no_grad()
def randomise(lm: RWKV7LM) -> None:
    """Every parameter random at the scale where it matters: mixes in 0..1, gates that open and close, norms near 1."""
    for name, parameter in lm.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf.startswith("x_"):
            parameter.uniform_()
        elif (
            name.endswith(MATRICES) or name == "head.weight" or leaf in {"w1", "a1", "v1", "g1", "w2", "a2", "v2", "g2"}
        ):
            rows, columns = parameter.shape  # Linear weights are (out, in), low-rank maps (in, out)
            parameter.normal_(std=(columns if name.endswith(".weight") else rows) ** -0.5)
        elif leaf == "weight" and parameter.ndim == 1:
            parameter.normal_(mean=1.0, std=0.2)
        else:
            parameter.normal_()
    tokens = torch.randint(lm.emb.num_embeddings, (1, 256))
    lm.head.weight.div_(lm(tokens)[0].std())


@pytest.fixture(scope="session")
def hard_lm() -> Callable[..., RWKV7LM]:
    """`hard_lm(vocab_size, dim, num_layers, head_dim=64, **backbone)`, in eval mode, the same at each call."""

    def make(vocab_size: int, dim: int, num_layers: int, head_dim: int = 64, **backbone: Any) -> RWKV7LM:
        torch.manual_seed(dim + num_layers)
        lm = RWKV7LM(vocab_size, dim, num_layers, head_dim=head_dim, backbone=backbone)
        randomise(lm)
        return lm.eval()

    return make
