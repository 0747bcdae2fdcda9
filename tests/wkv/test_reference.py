"""The step-by-step backend against the numpy oracle, and the oracle against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.wkv import wkv7, wkv7_reference

SHAPES = [(2, 1, 2, 4, 4), (2, 9, 2, 8, 8), (1, 33, 3, 5, 7), (3, 20, 1, 16, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("reset", [0.0, 0.3])
def test_float64_equals_the_oracle(make, agrees, shape, state, reset):
    case = make(*shape, state=state, reset=reset, dtype=torch.float64)
    agrees(case.run(wkv7, backend="reference"), case.truth, forward=1e-12, gradients=1e-12)


def test_wkv7_reference_is_the_reference_backend(make):
    case = make(2, 9, 2, 8, 8, reset=0.3)
    direct = wkv7_reference(*case.tensors, case.state, reset=case.reset)
    dispatched = wkv7(*case.tensors, case.state, reset=case.reset, backend="reference")
    assert all(torch.equal(x, y) for x, y in zip(direct, dispatched, strict=True))


def test_float32_error_is_rounding(make, agrees):
    case = make(2, 64, 2, 32, 32, reset=0.05)
    agrees(case.run(wkv7, backend="reference"), case.truth, forward=1e-6, gradients=1e-6)


def test_one_step_by_hand():
    """The removal reads the state BEFORE decay, rows are values, r is not scaled."""
    log_w = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    state = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    k, v, a, b, r = (torch.tensor(x, dtype=torch.float64) for x in ([1, 0], [5, 6], [1, 1], [0, 2], [1, 10]))
    # S diag(w) = [[.5, .5], [1.5, 1]]; S a = [3, 7]; (S a) b' = [[0, 6], [0, 14]]; v k' = [[5, 0], [6, 0]]
    expected = torch.tensor([[5.5, 6.5], [7.5, 15.0]], dtype=torch.float64)
    for backend in ("reference", "chunked"):
        y, final = wkv7(*(x.view(1, 1, 1, 2) for x in (r, log_w, k, v, a, b)), state[None], backend=backend)
        torch.testing.assert_close(final[0, 0], expected, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(y[0, 0, 0], torch.tensor([70.5, 157.5], dtype=torch.float64))


def test_the_oracles_gradients_are_its_differences(make):
    """A directional difference of the oracle's own forward, so that nothing leans on autograd alone."""
    case = make(2, 7, 2, 4, 3, reset=0.3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)

    def loss(truth):
        return (truth["y"] * case.dy.numpy()).sum() + (truth["final"] * case.dfinal.numpy()).sum()

    for name, x in {**case.inputs, "state": case.state}.items():
        step = 1e-6 * torch.randn(x.shape, generator=draw, dtype=torch.float64)

        def at(value, name=name):
            if name == "state":
                return loss(case.change(state=value).truth)
            return loss(case.change(inputs={**case.inputs, name: value}).truth)

        slope = (case.truth[f"d{name}"] * step.numpy()).sum()
        np.testing.assert_allclose(at(x + step) - at(x - step), 2 * slope, rtol=1e-6)
