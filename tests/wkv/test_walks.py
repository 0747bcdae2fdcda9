"""Walks: a backend that visits tokens where they lie equals the plain recurrence on permuted copies."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from core.wkv import available_backends, build, use_backend, wkv7
from core.wkv.walk import FORWARD, Walk

GRID = (3, 7)
STEPS = 21
WALKS = {
    "backward": Walk(("backward",)),
    "down": Walk(("down",), grid=GRID),
    "up": Walk(("up",), grid=GRID),
    "both": Walk(("forward", "backward")),
    "both split": Walk(("forward", "backward"), split=True),
    "four": Walk(("forward", "backward", "down", "up"), grid=GRID),
    "four split": Walk(("forward", "backward", "down", "up"), split=True, grid=GRID),
}


def problem(walk: Walk, heads: int = 4, dim_k: int = 8, dim_v: int = 24) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """r, log_w, k, v, a, b and a state; cotangents of y and of the final state."""
    keys, values = (2, STEPS, heads, dim_k), (2, STEPS, heads, dim_v)
    kk = torch.nn.functional.normalize(torch.randn(keys), dim=-1)
    log_w = -0.6 * torch.rand(keys)
    inputs = [torch.randn(keys), log_w, torch.randn(keys), torch.randn(values), -kk, kk * torch.rand(keys)]
    states = (2, walk.states(heads), dim_v, dim_k)
    return [*inputs, torch.randn(states)], torch.randn(values), torch.randn(states), torch.rand(2, STEPS) < 0.2


def both(tensors: list[Tensor], dy: Tensor, dfinal: Tensor, **options: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    y, final = wkv7(*leaves, **options)
    assert final is not None
    loss = (y * dy).sum() + (final * dfinal).sum()
    return [y, final, *torch.autograd.grad(loss, leaves)]


@pytest.fixture(params=["native", "chunked"])
def backend(request: pytest.FixtureRequest) -> str:
    if reason := available_backends()[request.param]:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize("name", WALKS)
def test_every_walk_and_its_gradients_equal_the_recurrence(name: str, packed: bool, backend: str) -> None:
    walk = WALKS[name]
    tensors, dy, dfinal, reset = problem(walk)
    if packed and walk.grid:
        with pytest.raises(ValueError, match="walks over columns"):
            wkv7(*tensors, reset=reset, walk=walk, backend=backend)
        return
    options = {"walk": walk, "reset": reset if packed else None}
    truth = both([x.double() for x in tensors], dy, dfinal, backend="reference", **options)
    for found, wanted in zip(both(tensors, dy, dfinal, backend=backend, **options), truth, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lanes", [4, 16])
def test_vectors_of_other_processors_compute_the_same(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSE's and NEON's width, and AVX-512's, which the compiler makes up from what there is."""
    if reason := available_backends()["native"]:
        pytest.skip(reason)
    library = build.load(build.SOURCE, ("wkv7_forward", "wkv7_backward"), (f"-DWKV7_LANES={lanes}", "-Wno-psabi"))
    assert library.require().wkv7_lanes() == lanes
    monkeypatch.setattr(build, "library", lambda: library)
    for name, dim_v in (("four", 24), ("both split", 37)):
        tensors, dy, dfinal, _ = problem(WALKS[name], dim_k=13, dim_v=dim_v)
        truth = both([x.double() for x in tensors], dy, dfinal, walk=WALKS[name], backend="reference")
        found = both(tensors, dy, dfinal, walk=WALKS[name], backend="native")
        for x, wanted in zip(found, truth, strict=True):
            torch.testing.assert_close(x, wanted.float(), rtol=1e-4, atol=1e-5)


def test_a_backward_walk_is_the_reversed_sequence(backend: str) -> None:
    tensors, *_ = problem(FORWARD)
    y, final = wkv7(*tensors, walk=WALKS["backward"], backend=backend)
    r, log_w, k, v, a, b = (x.flip(1) for x in tensors[:6])
    turned, wanted = wkv7(r, log_w, k, v, a, b, tensors[6], backend=backend)
    torch.testing.assert_close((y, final), (turned.flip(1), wanted))


def test_bfloat16_directions_are_averaged_in_float32() -> None:
    if reason := available_backends()["native"]:
        pytest.skip(reason)
    walk = WALKS["four"]
    tensors, dy, dfinal, _ = problem(walk)
    low = [x.bfloat16() for x in tensors[:6]]
    found = both([*low, tensors[6]], dy.bfloat16(), dfinal, walk=walk, backend="native")
    exact = both([*(x.float() for x in low), tensors[6]], dy.bfloat16().float(), dfinal, walk=walk, backend="native")
    for x, wanted in zip(found, exact, strict=True):
        assert torch.equal(x, wanted.to(x.dtype))  # one rounding at the end


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_share_heads_and_values_without_changing_a_bit(threads: int) -> None:
    if reason := available_backends()["native"]:
        pytest.skip(reason)
    draw = torch.Generator().manual_seed(0)
    keys, values = (1, 400, 1, 64), (1, 400, 1, 88)  # enough work for several threads, one head
    r, k, a = (torch.randn(keys, generator=draw) for _ in range(3))
    a = torch.nn.functional.normalize(a, dim=-1)
    inputs = (r, -0.5 * torch.rand(keys, generator=draw), k, torch.randn(values, generator=draw), a, -0.5 * a)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = wkv7(*inputs, backend="native")
        torch.set_num_threads(threads)
        found = wkv7(*inputs, backend="native")
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        ("backward", "must be a core.Walk, .* got 'backward'"),
        (Walk(("sideways",)), "must be of forward, backward, down, up"),
        (Walk(()), "must be of forward"),
        (Walk(("down",)), "needs the token grid"),
        (Walk(("up",), grid=(4, 4)), "height \\* width = 21 tokens, got \\(4, 4\\)"),
        (Walk(("forward", "backward", "forward"), split=True), "cannot share out 4 heads"),
    ],
)
def test_a_walk_that_does_not_fit_is_refused(walk: Walk, message: str) -> None:
    tensors, *_ = problem(FORWARD)
    with pytest.raises(ValueError, match=message):
        wkv7(*tensors[:6], walk=walk)


@pytest.mark.parametrize("name", ["both", "four split"])
def test_walks_compile(name: str) -> None:
    walk = WALKS[name]
    tensors, dy, dfinal, _ = problem(walk)
    run = torch.compile(functools.partial(wkv7, walk=walk), backend="aot_eager", fullgraph=True)
    with use_backend("native" if available_backends()["native"] is None else "chunked"):
        leaves = [x.requires_grad_() for x in tensors]
        y, final = run(*leaves)
        assert final is not None
        loss = (y * dy).sum() + (final * dfinal).sum()
        found = [y, final, *torch.autograd.grad(loss, leaves)]
        torch.testing.assert_close(found, both(tensors, dy, dfinal, walk=walk))
