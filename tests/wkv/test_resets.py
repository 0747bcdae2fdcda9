"""A reset empties the state whatever it was: what lies behind it never feels an infinity or a NaN before it."""

from __future__ import annotations

import functools

import pytest
import torch

from core.wkv import chunked as chunked_module
from core.wkv import wkv7

BACKENDS = ["reference", "chunked", "native"]
every = pytest.mark.parametrize("backend", BACKENDS)
INF, NAN = float("inf"), float("nan")
wrong = pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
RESET = [[5, 40], [33]]  # in the middle of a chunk of 28 steps, in both rows; 40 lies in the second chunk


def spoil(x, value, *at):
    x = x.clone()
    x[at] = value
    return x


@pytest.fixture
def case(make):
    whole = make(2, 56, 2, 16, 24)
    reset = torch.zeros(2, 56, dtype=torch.bool)
    for row, at in enumerate(RESET):
        reset[row, at] = True
    return whole.change(reset=reset)


def behind(found, start, row=0):
    """What depends on nothing before step `start` of `row`."""
    parts = {name: x[row, start:] for name, x in found.items() if name not in ("final", "dstate")}
    return {**parts, "final": found["final"][row]}


def same(found, expected, bound=1e-4):
    for name, x in expected.items():
        assert found[name].isfinite().all(), name
        torch.testing.assert_close(found[name], x, rtol=bound, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


@every
@wrong
@pytest.mark.parametrize("lanes", [(0, 0, 3, 4), (0,)], ids=["one entry", "the row"])
def test_a_state_that_comes_in(case, backend, value, lanes):
    run = functools.partial(wkv7, backend=backend)
    truth = case.run(run)
    found = case.change(state=spoil(case.state, value, *lanes)).run(run)
    assert not found["y"][0, :5, 0].isfinite().all(), "before the reset it must show"
    same(behind(found, 5), behind(truth, 5))
    same(behind(found, 0, row=1), behind(truth, 0, row=1))
    # the discarded state's gradient is about the steps that read it, and no number of its own enters that
    torch.testing.assert_close(found["dstate"], truth["dstate"], rtol=1e-4, atol=1e-4)


@every
@wrong
def test_a_state_that_is_discarded_at_once_has_a_gradient_of_exactly_zero(case, backend, value):
    reset = spoil(case.reset, True, 0, 0)
    whole = case.change(reset=reset)
    run = functools.partial(wkv7, backend=backend)
    found = whole.change(state=spoil(case.state, value, 0)).run(run)
    assert found["dstate"][0].count_nonzero() == 0
    assert found["dstate"][1].count_nonzero() > 0
    same(found, whole.run(run))


@every
@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in ("r", "k", "v", "a", "b") for value in (INF, -INF, NAN)), ("log_w", NAN)],
)
@pytest.mark.parametrize("at", [2, 34])
def test_a_value_in_the_chunk_of_the_reset(case, backend, value, name, at):
    """Step 2 before the reset at 5; step 34 before the one at 40, behind the one at 5: both sides stay clean."""
    run = functools.partial(wkv7, backend=backend)
    truth = case.run(run)
    found = case.change(inputs={**case.inputs, name: spoil(case.inputs[name], value, 0, at)}).run(run)
    assert not found["y"][0, at].isfinite().all()
    nearest = next(reset for reset in RESET[0] if reset > at)
    same(behind(found, nearest), behind(truth, nearest))
    if at > 5:
        early = {n: x[0, :5] for n, x in found.items() if n not in ("final", "dstate")}
        same(early, {n: truth[n][0, :5] for n in early})
        torch.testing.assert_close(found["dstate"], truth["dstate"], rtol=1e-4, atol=1e-4)


@every
def test_a_state_that_overflows_on_its_own(case, backend):
    run = functools.partial(wkv7, backend=backend)
    found = case.change(inputs={**case.inputs, "v": spoil(case.inputs["v"], 3e38, 0, slice(1, 4))}).run(run)
    assert not found["y"][0, :5].isfinite().all()
    same(behind(found, 5), behind(case.run(run), 5))


@every
@wrong
@pytest.mark.parametrize("name", ["dy", "dfinal"])
def test_a_gradient_stops_at_the_reset(case, backend, value, name):
    """What a loss makes of a spoilt segment's outputs is spoilt as well; the segments before it are not."""
    run = functools.partial(wkv7, backend=backend)
    truth = case.run(run)
    at = (0, 45) if name == "dy" else (0,)
    found = case.change(**{name: spoil(getattr(case, name), value, *at)}).run(run)
    assert not found["dv"][0, 40:].isfinite().all()
    kept = {n: x[0, :40] for n, x in found.items() if n not in ("final", "dstate")}
    same(kept, {n: truth[n][0, :40] for n in kept})
    torch.testing.assert_close(found["dstate"], truth["dstate"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chance", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("steps", [17, 130])
def test_where_nobody_looks_the_numbers_are_the_same(make, agrees, monkeypatch, chance, state, steps):
    monkeypatch.setattr(chunked_module, "_can_look", lambda x: False)
    case = make(3, steps, 2, 32, 48, state=state, reset=chance)
    agrees(case.run(functools.partial(wkv7, backend="chunked")), case.truth)


@wrong
def test_where_nobody_looks_chunks_stop_a_state_by_themselves(case, value, monkeypatch):
    """On a GPU nothing waits for a look at the values: the masks alone must hold back a state that comes in."""
    monkeypatch.setattr(chunked_module, "_can_look", lambda x: False)
    run = functools.partial(wkv7, backend="chunked")
    truth = case.run(run)
    found = case.change(state=spoil(case.state, value, 0)).run(run)
    assert not found["y"][0, :5].isfinite().any()
    same(behind(found, 5), behind(truth, 5))
    torch.testing.assert_close(found["dstate"], truth["dstate"], rtol=1e-4, atol=1e-4)


def test_without_a_final_state_and_without_a_state(case):
    for state in (None, spoil(case.state, float("nan"), 0)):
        values = spoil(case.inputs["v"], float("inf"), 0, 3)
        inputs = {**case.inputs, "v": values}
        y, final = wkv7(**inputs, state=state, reset=case.reset, return_state=False, backend="chunked")
        truth, _ = wkv7(**case.inputs, state=case.state, reset=case.reset, backend="chunked")
        assert final is None
        torch.testing.assert_close(y[0, 5:], truth[0, 5:], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ the range of decays


def _with_decay(case, log_w):
    return case.change(inputs={**case.inputs, "log_w": log_w}, reset=None)


@pytest.mark.parametrize(
    ("backend", "level"), [("chunked", -1.0), ("chunked", -2.0), ("native", -2.0), ("native", -3.5), ("native", -5.0)]
)
def test_backends_are_accurate_to_the_end_of_their_range(make, agrees, backend, level):
    case = _with_decay(make(2, 96, 2, 32, 32), torch.full((2, 96, 2, 32), level))
    found = case.run(functools.partial(wkv7, backend=backend))
    agrees(found, case.truth, 2e-6, 5e-6 if level >= -2 else 1e-4)  # the decay's own gradient loses digits


def test_one_strong_decay_is_fine_while_the_chunk_s_sum_is(make, agrees):
    case = make(2, 96, 2, 32, 32)
    log_w = spoil(case.inputs["log_w"] / 4, -40.0, 0, 50)
    agrees(_with_decay(case, log_w).run(functools.partial(wkv7, backend="chunked")), _with_decay(case, log_w).truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", [-30.0, -1000.0, float("-inf")])
def test_beyond_it_they_refuse_in_a_sentence(make, dtype, level):
    case = make(1, 40, 2, 8, 8).to(dtype)
    log_w = torch.full_like(case.inputs["log_w"], level)
    with pytest.raises(ValueError, match=r"log_w sums to .* over 20 steps.*backend='reference'") as caught:
        wkv7(**{**case.inputs, "log_w": log_w}, backend="chunked")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("level", "steep"), [(-4.9, slice(32, 48)), (-9.0, slice(40, 48)), (-9.0, slice(44, 52))])
@pytest.mark.parametrize("reset", [None, 41])
def test_the_native_kernel_goes_from_gentle_steps_to_steep_ones(make, agrees, level, steep, reset):
    """Its scaled coordinates lie up to 20 deep already when the steep steps come, of one key."""
    case = make(2, 96, 2, 32, 32)
    case = _with_decay(case, spoil(case.inputs["log_w"].clamp(max=-0.3), level, 1, steep, 0, 5))
    if reset is not None:
        case = case.change(reset=spoil(torch.zeros(2, 96, dtype=torch.bool), True, 1, reset))
    agrees(case.run(functools.partial(wkv7, backend="native")), case.truth, 2e-6, 1e-4)


@pytest.mark.parametrize("level", [-5.1, -30.0, float("-inf")])
def test_the_native_kernel_refuses_too(make, level):
    case = make(1, 40, 2, 8, 8)
    log_w = case.inputs["log_w"].clone()
    log_w[0, 16:32, 1, 7] = level
    for grad in (False, True):  # the plain call, and the op
        with pytest.raises(ValueError, match=r"log_w sums to less than -80 over 16 steps.*backend='reference'"):
            wkv7(**{**case.inputs, "log_w": log_w.requires_grad_(grad)}, backend="native")


def test_float64_holds_five_times_as_much(make, agrees):
    case = make(1, 64, 2, 8, 8, dtype=torch.float64)
    case = _with_decay(case, torch.full_like(case.inputs["log_w"], -9.0))
    agrees(case.run(functools.partial(wkv7, backend="chunked")), case.truth, 1e-12, 1e-10)


def test_the_refusal_survives_compiling(make):
    case = make(1, 40, 2, 8, 8)
    call = torch.compile(functools.partial(wkv7, backend="chunked"), fullgraph=True, backend="aot_eager")
    call(**case.inputs)
    with pytest.raises(ValueError, match="log_w sums to"):
        call(**{**case.inputs, "log_w": case.inputs["log_w"] - 5.0})
    torch._dynamo.reset()
