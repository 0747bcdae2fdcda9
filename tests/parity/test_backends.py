"""One language model, every backend of the operator that can run here: the same logits, gradients and states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from core.lm import RWKV7LM
from core.wkv import available_backends, use_backend

BACKENDS = [name for name in available_backends() if name != "reference"]


@pytest.mark.parametrize("length", [1, 33, 200])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_states_gradients(hard_lm: Callable[..., RWKV7LM], backend: str, length: int) -> None:
    if reason := available_backends()[backend]:
        pytest.skip(f"backend {backend} is not available: {reason}")
    lm = hard_lm(100, 128, 3, head_dim=32)
    tokens = torch.randint(100, (2, length))
    results = {}
    for name in ("reference", backend):
        lm.zero_grad()
        with use_backend(name):
            logits, state = lm(tokens)
            logits.square().mean().backward()
        gradients = {key: parameter.grad.clone() for key, parameter in lm.named_parameters()}
        results[name] = logits.detach(), dict(state.detach().named_tensors()), gradients
    (truth, true_state, true_gradients), (logits, state, gradients) = results["reference"], results[backend]
    assert (logits - truth).abs().max() < 1e-5
    assert all((state[key] - x).norm() <= 1e-5 * x.norm() + 1e-6 for key, x in true_state.items())
    for key, gradient in true_gradients.items():
        assert (gradients[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, key
