"""The stack under torch.compile, autocast, activation checkpointing and torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch

from core import RWKV7LM, Backbone, Context


def test_compiles_to_one_graph_with_equal_gradients(shake: Callable, close: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x = torch.randn(2, 40, 32)
    wanted, state = backbone(x)
    wanted.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters()}
    backbone.zero_grad()
    got, got_state = torch.compile(backbone, fullgraph=True, backend="aot_eager")(x)
    close(got, wanted)
    close(got_state, state)
    got.square().sum().backward()
    for name, p in backbone.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], atol=1e-3, rtol=1e-3)


def test_checkpointing_gives_the_same_gradients(shake: Callable) -> None:
    backbone = shake(Backbone(32, 3, head_dim=8, token_shift="quad", scan="bidirectional", mixer=["rwkv7"]))
    x, ctx = torch.randn(2, 12, 32), Context(grid=(3, 4), keep_state=False)
    gradients = []
    for enable in (False, True):
        backbone.set_grad_checkpointing(enable)
        backbone.zero_grad()
        backbone(x, None, ctx)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_and_keeps_states_float32(shake: Callable, dtype: torch.dtype) -> None:
    model = shake(RWKV7LM(50, 32, 2, head_dim=8), 0.05)
    tokens = torch.randint(0, 50, (2, 40))
    wanted, _ = model(tokens)
    with torch.autocast("cpu", dtype=dtype):
        got, state = model(tokens)
    assert got.dtype == dtype
    assert {t.dtype for name, t in state.named_tensors() if name.endswith("wkv")} == {torch.float32}
    assert (got.float() - wanted).norm() / wanted.norm() < 0.05
    got.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_bfloat16_model_runs(shake: Callable) -> None:
    model = shake(RWKV7LM(50, 32, 2, head_dim=8), 0.05)
    tokens = torch.randint(0, 50, (2, 40))
    wanted, _ = model(tokens)
    got, _ = model.to(torch.bfloat16)(tokens)
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() / wanted.norm() < 0.1


def test_exports_and_loads_with_the_same_output(shake: Callable, close: Callable) -> None:
    model = shake(RWKV7LM(50, 32, 2, head_dim=8)).eval()
    tokens = torch.randint(0, 50, (1, 40))
    program = torch.export.export(model, (tokens,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    close(loaded(tokens)[0], model(tokens)[0])
