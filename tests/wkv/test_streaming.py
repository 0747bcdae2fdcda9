"""Whatever the split, the shape or the resets, the whole is the sum of its parts; hypothesis draws them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.wkv import wkv7

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# In float64: hypothesis finds tensors of one number that happens to cancel, whose relative error means nothing.
EXACT = {"forward": 1e-10, "gradients": 1e-9}
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 140), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)
)  # B, T, H, K, V


def in_pieces(cuts, backend="chunked"):
    """wkv7 called on one piece of the time axis after the other, the state handed on."""

    def wkv(r, log_w, k, v, a, b, state=None, *, reset=None):
        ys, borders = [], sorted({0, r.shape[1], *(c for c in cuts if c < r.shape[1])})
        for start, stop in itertools.pairwise(borders):
            part = (x[:, start:stop] for x in (r, log_w, k, v, a, b))
            marks = None if reset is None else reset[:, start:stop]
            y, state = wkv7(*part, state, reset=marks, backend=backend)
            ys.append(y)
        return torch.cat(ys, dim=1), state

    return wkv


@SETTINGS
@given(shape=shapes, state=st.booleans(), reset=st.sampled_from([0.0, 0.0, 0.02, 0.3]), seed=st.integers(0, 3))
def test_any_shape(make, agrees, shape, state, reset, seed):
    case = make(*shape, state=state, reset=reset, seed=seed, dtype=torch.float64)
    agrees(case.run(wkv7, backend="chunked"), case.truth, **EXACT)


@SETTINGS
@given(shape=shapes, cuts=st.lists(st.integers(1, 139), max_size=6), reset=st.sampled_from([0.0, 0.05]))
def test_streaming_in_any_pieces_equals_the_whole(make, agrees, shape, cuts, reset):
    """Outputs, final state and all gradients, those that flow back through the handed-on state included."""
    case = make(*shape, reset=reset, dtype=torch.float64)
    agrees(case.run(in_pieces(cuts)), case.truth, **EXACT)


@pytest.mark.parametrize("cuts", [[1, 37, 333], [32, 64, 96], list(range(1, 1000, 7)), list(range(1, 200))])
def test_streaming_a_thousand_steps(make, agrees, cuts):
    case = make(1, 1000, 2, 32, 32)
    agrees(case.run(in_pieces(cuts)), case.truth)


def test_one_token_at_a_time_equals_the_whole(make, agrees):
    case = make(2, 90, 2, 16, 24, reset=0.05)
    agrees(case.run(in_pieces(range(90))), case.truth)
    agrees(case.run(in_pieces(range(90), backend="reference")), case.truth)


def test_backends_may_change_between_pieces(make, error):
    case = make(2, 80, 2, 16, 24)
    y1, state = wkv7(*(x[:, :45] for x in case.tensors), case.state, backend="chunked")
    y2, final = wkv7(*(x[:, 45:] for x in case.tensors), state, backend="reference")
    assert error(torch.cat((y1, y2), dim=1), case.truth["y"]) <= 2e-6
    assert error(final, case.truth["final"]) <= 2e-6


@SETTINGS
@given(
    steps=st.integers(1, 120),
    marks=st.lists(st.sets(st.integers(0, 119), max_size=8), min_size=2, max_size=2),
    state=st.booleans(),
)
def test_reset_equals_separate_calls(make, agrees, steps, marks, state):
    """Each packed piece is what it would be alone, from a zero state: outputs, last state, all gradients."""
    case = make(2, steps, 2, 8, 12, state=state, dtype=torch.float64)
    reset = torch.zeros(2, steps, dtype=torch.bool)
    for row, at in enumerate(marks):
        reset[row, [t for t in at if t < steps]] = True

    def separately(r, log_w, k, v, a, b, state=None, *, reset=None):
        rows = []
        for row in range(2):
            borders = sorted({0, steps, *marks[row].intersection(range(steps))})
            ys, current = [], None if state is None else state[row : row + 1]
            for start, stop in itertools.pairwise(borders):
                part = (x[row : row + 1, start:stop] for x in (r, log_w, k, v, a, b))
                y, current = wkv7(*part, None if start in marks[row] else current, backend="chunked")
                ys.append(y)
            rows.append((torch.cat(ys, dim=1), current))
        y, final = (torch.cat(x) for x in zip(*rows, strict=True))
        if state is not None and not state.grad_fn:  # a row that starts with a reset never reads its state
            y = y + 0 * state.sum()
        return y, final

    together = case.change(reset=reset)
    packed, alone = together.run(wkv7, backend="chunked"), together.run(separately)
    agrees(packed, together.truth, **EXACT)
    agrees(alone, together.truth, **EXACT)


@pytest.mark.parametrize("backend", ["reference", "chunked", "native"])
@pytest.mark.parametrize("steps", [1, 6, 70])
@pytest.mark.parametrize("where", ["first", "last", "consecutive", "all", "none", "one row"])
def test_resets_at_the_edges(make, agrees, backend, steps, where):
    reset = torch.zeros(2, steps, dtype=torch.bool)
    if where == "first":
        reset[:, 0] = True
    elif where == "last":
        reset[:, -1] = True
    elif where == "consecutive":
        reset[:, steps // 2 : steps // 2 + 3] = True
    elif where == "all":
        reset[:] = True
    elif where == "one row":
        reset[1, steps // 3] = True
    case = make(2, steps, 2, 16, 24).change(reset=reset)
    found = case.run(wkv7, backend=backend)
    agrees(found, case.truth)
    if where == "first":
        assert not found["dstate"].any()
        assert not found["dlog_w"][:, 0].any()
    if where == "none":
        plain = case.change(reset=None).run(wkv7, backend=backend)
        agrees(plain, {name: x.double().numpy() for name, x in found.items()}, gradients=2e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked", "native"])
def test_a_step_after_reset_forgets_what_is_not_finite(make, backend):
    """An episode that overflowed must not reach the next one: the state is emptied, not multiplied by zero."""
    case = make(1, 1, 2, 8, 8)
    state = torch.full_like(case.state, torch.inf)
    y, final = wkv7(*case.tensors, state, reset=torch.ones(1, 1, dtype=torch.bool), backend=backend)
    assert y.isfinite().all()
    assert final.isfinite().all()
