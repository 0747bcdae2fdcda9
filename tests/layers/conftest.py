"""Helpers for the layer tests: models off their symmetric start, inputs, comparisons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core import Backbone, State


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shake() -> Callable[[nn.Module], nn.Module]:
    """Add noise to every parameter: RWKV-7 starts with zero outputs, on which most tests would pass blindly."""

    def run(module: nn.Module, scale: float = 0.1) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
        return module

    return run


@pytest.fixture
def close() -> Callable[..., None]:
    """Equal within rounding of float32 (or the tolerance given), states included."""

    def check(got: Tensor | State, wanted: Tensor | State, tolerance: float = 2e-5) -> None:
        if isinstance(wanted, State):
            assert isinstance(got, State)
            pairs = dict(got.named_tensors()), dict(wanted.named_tensors())
            assert pairs[0].keys() == pairs[1].keys()
            for name in pairs[0]:
                torch.testing.assert_close(pairs[0][name], pairs[1][name], atol=tolerance, rtol=tolerance)
            return
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)

    return check


@pytest.fixture(params=["rwkv7", "attention", "hybrid"])
def causal_backbone(request: pytest.FixtureRequest, shake: Callable[[nn.Module], nn.Module]) -> Backbone:
    """A small causal stack of each kind."""
    mixer = ["rwkv7", "attention"] if request.param == "hybrid" else request.param
    kwargs = {} if request.param == "rwkv7" else {"mixer_kwargs": {"attention": {"rope_theta": 100.0}}}
    backbone = shake(Backbone(32, 4, head_dim=8, mixer=mixer, **kwargs))
    assert isinstance(backbone, Backbone)
    return backbone
