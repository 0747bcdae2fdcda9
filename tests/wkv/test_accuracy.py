"""The fast backends' numbers: float32 within 2e-6 (forward) and 5e-6 (gradients) of float64, and exact algebra.

Errors are relative root mean squares over a whole tensor, as flash-linear-attention and wind_rwkv report them.
Every length meets every head size with all gradients; the hard kinds of input are sampled (three lengths, one
square and one oblong head), since they are about the numbers in one chunk and about many chunks in a row.
"""

from __future__ import annotations

import functools

import pytest
import torch

from core.wkv import chunked as chunked_module
from core.wkv import wkv7

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 1000]
SQUARE = [(16, 16), (32, 32), (64, 64), (128, 128)]
OBLONG = [(16, 64), (64, 16), (32, 128), (128, 32), (64, 40)]
HARD = [
    "floor", "slow", "mixed_decays", "same_key", "near_collinear", "one_hot", "iclr_1", "iclr_2", "reflections",
]  # fmt: skip

chunked = functools.partial(wkv7, backend="chunked")
every_fast = pytest.mark.parametrize("backend", ["chunked", "native"])


@every_fast
@pytest.mark.parametrize("heads", SQUARE + OBLONG, ids=lambda kv: f"K{kv[0]}-V{kv[1]}")
@pytest.mark.parametrize("steps", LENGTHS)
def test_float32_on_inputs_as_time_mix_makes_them(make, agrees, steps, heads, backend):
    batch = 2 if steps < 1000 else 1
    case = make(batch, steps, 2, *heads)
    agrees(case.run(wkv7, backend=backend), case.truth)


@every_fast
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", [(2, 17, 2, 64, 64), (2, 65, 2, 32, 48), (1, 1000, 2, 64, 64)])
def test_float32_on_hard_inputs(make, agrees, shape, kind, backend):
    case = make(*shape, kind=kind)
    agrees(case.run(wkv7, backend=backend), case.truth)


@every_fast
@pytest.mark.parametrize("steps", [1, 17, 64, 300])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("chance", [0.02, 0.3, 1.0])
def test_float32_with_resets(make, agrees, steps, state, chance, backend):
    case = make(3, steps, 2, 32, 48, state=state, reset=chance)
    agrees(case.run(wkv7, backend=backend), case.truth)


@every_fast
@pytest.mark.parametrize("kind", ["floor", "same_key", "iclr_2"])
def test_float32_on_hard_inputs_with_resets(make, agrees, kind, backend):
    case = make(2, 200, 2, 32, 32, kind=kind, reset=0.05)
    agrees(case.run(wkv7, backend=backend), case.truth)


@every_fast
@pytest.mark.parametrize("steps", [17, 65, 1000])
def test_float32_where_nothing_damps_the_error(make, agrees, steps, backend):
    """One key reflected at every step without decay, where the step loop's error grows with T as well.

    What a parity counter learns (a = 2, w -> 1). Each step repeats the same rounding of |kk|^2, so it adds up.
    """
    case = make(1, steps, 2, 64, 64, kind="mirror")
    agrees(
        case.run(wkv7, backend=backend), case.truth, forward=max(2e-6, 5e-8 * steps), gradients=max(5e-6, 2e-7 * steps)
    )


@pytest.mark.parametrize("steps", LENGTHS[:-1])
@pytest.mark.parametrize("reset", [0.0, 0.15])
@pytest.mark.parametrize("state", [True, False])
def test_float64_is_exact_algebra(make, agrees, steps, reset, state):
    """In float64 nothing but rounding may remain: a term that is merely small cannot hide in the bound."""
    case = make(2, steps, 2, 8, 12, state=state, reset=reset, dtype=torch.float64)
    agrees(case.run(chunked), case.truth, forward=1e-12, gradients=1e-11)


def _gradcheck(case, **options):
    state = [] if case.state is None else [case.state]
    leaves = [x.clone().requires_grad_() for x in (*case.tensors, *state)]

    def call(*tensors):
        state = tensors[6] if len(tensors) > 6 else None
        return wkv7(*tensors[:6], state, reset=case.reset, backend="chunked")

    assert torch.autograd.gradcheck(call, leaves, **options)


@pytest.mark.parametrize("steps", [2, 4, 5, 11])
@pytest.mark.parametrize("reset", [0.0, 0.3])
@pytest.mark.parametrize("state", [True, False])
def test_gradcheck_every_entry(make, monkeypatch, steps, reset, state):
    """All inputs, the initial state, through y and the final state; chunks of 4: below, at and above one."""
    monkeypatch.setattr(chunked_module, "CHUNK", 4)
    _gradcheck(make(2, steps, 1, 3, 2, state=state, reset=reset, dtype=torch.float64))


@pytest.mark.parametrize("offset", [-1, 0, 1, 33])
@pytest.mark.parametrize("reset", [0.0, 0.1])
def test_gradcheck_at_the_real_chunk(make, offset, reset):
    steps = chunked_module.CHUNK + offset
    _gradcheck(make(2, steps, 2, 4, 3, reset=reset, dtype=torch.float64), fast_mode=True)


def test_gradcheck_shared_state_and_single_step(make):
    one = make(2, 1, 2, 4, 3, dtype=torch.float64)
    _gradcheck(one)
    _gradcheck(one.change(state=one.state[0]))
    _gradcheck(make(2, 5, 1, 3, 2, dtype=torch.float64).change(state=torch.randn(1, 2, 3, dtype=torch.float64)))


@every_fast
@pytest.mark.parametrize("steps", [5, 70])
@pytest.mark.parametrize("used", ["y", "final"])
def test_one_output_used_alone(make, agrees, steps, used, backend):
    case = make(2, steps, 2, 8, 8)
    unused = "dfinal" if used == "y" else "dy"
    case = case.change(**{unused: torch.zeros_like(getattr(case, unused))})
    leaves = [x.clone().requires_grad_() for x in (*case.tensors, case.state)]
    y, final = wkv7(*leaves, backend=backend)
    out, cotangent = (y, case.dy) if used == "y" else (final, case.dfinal)
    grads = torch.autograd.grad(out, leaves, cotangent, materialize_grads=True)
    names = ("dr", "dlog_w", "dk", "dv", "da", "db", "dstate")
    agrees(dict(zip(names, grads, strict=True)), case.truth)


@every_fast
@pytest.mark.parametrize("steps", [1, 5, 70])
def test_any_subset_of_inputs_may_want_a_gradient(make, error, steps, backend):
    case = make(2, steps, 2, 8, 8)
    for name in (*case.inputs, "state"):
        values = {**case.inputs, "state": case.state}
        leaf = values[name] = values[name].clone().requires_grad_()
        y, final = wkv7(**values, backend=backend)
        (grad,) = torch.autograd.grad((y * case.dy).sum() + (final * case.dfinal).sum(), [leaf])
        assert error(grad, case.truth[f"d{name}"]) <= 5e-6, name


@every_fast
def test_backward_twice_gives_the_same(make, backend):
    case = make(2, 70, 2, 8, 8)
    leaves = [x.clone().requires_grad_() for x in (*case.tensors, case.state)]
    outputs = wkv7(*leaves, backend=backend)
    first, second = (torch.autograd.grad(outputs, leaves, [case.dy, case.dfinal], retain_graph=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_second_derivative_is_refused_and_not_silently_zero(make):
    case = make(1, 9, 1, 4, 4)
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    y, _ = wkv7(*leaves, backend="chunked")
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="wkv7_chunked_backward"):
        torch.autograd.grad(grad.square().sum(), leaves[2])
