"""What a caller may rely on: shapes, dtypes, states, memory, and one clear sentence for what does not fit."""

from __future__ import annotations

import pytest
import torch

from core.wkv import wkv7

BACKENDS = ["reference", "chunked", "native"]
both = pytest.mark.parametrize("backend", BACKENDS)
lengths = pytest.mark.parametrize("steps", [1, 5, 70])


# ------------------------------------------------------------------------------------------------------- states


@both
@lengths
def test_no_state_is_a_zero_state(make, agrees, backend, steps):
    case = make(2, steps, 2, 16, 24, state=False)
    assert case.state is None
    zeros = case.change(state=torch.zeros_like(case.dfinal))
    agrees(case.run(wkv7, backend=backend), zeros.truth)
    agrees(zeros.run(wkv7, backend=backend), zeros.truth)


@both
@lengths
def test_one_state_for_all_rows_gets_the_sum_of_their_gradients(make, agrees, backend, steps):
    case = make(3, steps, 2, 16, 24)
    case = case.change(state=case.state[0].clone())
    found = case.run(wkv7, backend=backend)
    assert found["dstate"].shape == (2, 24, 16)
    agrees(found, case.truth)


@both
@lengths
@pytest.mark.parametrize("state", [True, False])
def test_without_return_state(make, backend, steps, state):
    case = make(2, steps, 2, 16, 24, state=state)
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    y, final = wkv7(*leaves, case.state, return_state=False, backend=backend)
    assert final is None
    whole, _ = wkv7(*case.tensors, case.state, backend=backend)
    assert torch.equal(y, whole)
    y.backward(case.dy)
    truth = case.change(dfinal=torch.zeros_like(case.dfinal)).truth
    for name, leaf in zip(case.inputs, leaves, strict=True):
        if leaf.grad is None:  # a decay without state at T = 1 reaches nothing
            assert not truth[f"d{name}"].any()
        else:
            torch.testing.assert_close(leaf.grad.double(), torch.from_numpy(truth[f"d{name}"]), rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("steps", [1, 4, 32, 33, 100])
def test_neutral_steps_leave_the_state_exactly(make, backend, steps):
    """log_w = 0 and k = v = a = b = 0 is how padding is written: not a bit of the state may change."""
    case = make(2, steps, 2, 16, 24)
    zero, state = torch.zeros_like(case.inputs["k"]), case.state
    y, final = wkv7(case.inputs["r"], zero, zero, torch.zeros_like(case.dy), zero, zero, state, backend=backend)
    assert torch.equal(final, state)
    torch.testing.assert_close(y, torch.einsum("bhvk,bthk->bthv", state, case.inputs["r"]))


@both
def test_padding_at_the_end_of_a_row_changes_nothing_for_it(make, error, backend):
    case = make(2, 70, 2, 16, 24)
    padded = {name: x.clone() for name, x in case.inputs.items()}
    for name in ("log_w", "k", "v", "a", "b"):
        padded[name][1, 41:] = 0.0
    y, final = wkv7(**padded, state=case.state, backend=backend)
    alone, last = wkv7(*(x[1:, :41] for x in case.tensors), case.state[1:], backend=backend)
    assert error(y[1:, :41], alone) <= 2e-6
    assert error(final[1:], last) <= 2e-6


# ---------------------------------------------------------------------------------------------- dtypes and memory


@both
@lengths
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize("wide_decay", [True, False])
def test_half_precision_in_and_out_float32_inside(make, error, backend, steps, dtype, unit, wide_decay):
    """The state is float32-accurate for the rounded inputs; y and the gradients carry one rounding to `dtype`."""
    whole = make(2, steps, 2, 32, 48, reset=0.05)
    case = whole.to(dtype)
    if wide_decay:
        case = case.change(inputs={**case.inputs, "log_w": whole.inputs["log_w"]})
    found = case.run(wkv7, backend=backend)
    assert found["y"].dtype is dtype
    assert found["final"].dtype is found["dstate"].dtype is torch.float32
    for name, x in case.inputs.items():
        assert found[f"d{name}"].dtype is x.dtype, name
    assert error(found["final"], case.truth["final"]) <= 2e-6
    for name, x in found.items():
        bound = unit if x.dtype is dtype else 5e-6
        assert error(x, case.truth[name]) <= bound + 5e-6, name


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@lengths
def test_float64_state_for_float64_inputs(make, backend, steps):
    case = make(2, steps, 2, 8, 8, dtype=torch.float64)
    y, final = wkv7(*case.tensors, case.state.float(), backend=backend)
    assert y.dtype is final.dtype is torch.float64


def test_the_native_kernel_has_no_float64(make):
    case = make(2, 5, 2, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="computes in float32"):
        wkv7(*case.tensors, backend="native")
    assert wkv7(*case.tensors)[0].dtype is torch.float64


@both
@lengths
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_need_not_be_contiguous(make, agrees, backend, steps, layout):
    case = make(2, steps, 3, 16, 24, reset=0.1)

    def view(x):
        if layout == "transposed":  # as a (B, H, T, D) tensor would come
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "strided":
            return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
        return x[:, :, :1].expand_as(x) if x.dim() == 4 else x

    inputs = {name: view(x) for name, x in case.inputs.items()}
    if layout != "transposed" or steps > 1:
        assert not any(x.is_contiguous() for x in inputs.values())
    dense = case.change(inputs={name: x.contiguous() for name, x in inputs.items()})
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    state = view(case.state).detach().requires_grad_()
    if layout == "expanded":
        dense = dense.change(state=state.detach().contiguous())
    y, final = wkv7(*leaves.values(), state, reset=case.reset, backend=backend)
    assert y.is_contiguous()
    assert final.is_contiguous()
    torch.autograd.backward([y, final], [view(case.dy.contiguous()), view(case.dfinal)])
    found = {"y": y, "final": final, **{f"d{n}": x.grad for n, x in leaves.items()}, "dstate": state.grad}
    if layout == "expanded":
        dense = dense.change(dy=view(case.dy).contiguous(), dfinal=view(case.dfinal).contiguous())
    agrees(found, dense.truth)


@both
@lengths
@pytest.mark.parametrize("batch", [1, 2])  # one row can be cut into chunks without a copy
def test_no_input_is_modified_and_no_output_is_an_input(make, backend, steps, batch):
    case = make(batch, steps, 2, 16, 24, reset=0.2)
    given = {**case.inputs, "state": case.state, "reset": case.reset}
    copies = {name: x.clone() for name, x in given.items()}
    leaves = {n: x.clone().requires_grad_() if x.is_floating_point() else x.clone() for n, x in given.items()}
    dy, dfinal = case.dy.clone(), case.dfinal.clone()
    y, final = wkv7(**leaves, backend=backend)
    torch.autograd.backward([y, final], [dy, dfinal])
    for name, x in copies.items():
        assert torch.equal(leaves[name], x), name
        assert leaves[name]._version == 0, name
    assert torch.equal(dy, case.dy)
    assert torch.equal(dfinal, case.dfinal)
    assert y.data_ptr() != leaves["v"].data_ptr()
    assert final.data_ptr() != leaves["state"].data_ptr()
    gradients = [x.grad.data_ptr() for x in leaves.values() if x.grad is not None]
    assert len(set(gradients) | {dy.data_ptr(), dfinal.data_ptr()}) == len(gradients) + 2


@both
@lengths
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("reset", [0.0, 0.2])
def test_uninitialised_memory_never_shows(make, agrees, nan_empty, backend, steps, state, reset):
    case = make(2, steps, 2, 16, 24, state=state, reset=reset)
    agrees(case.run(wkv7, backend=backend), case.truth)
    y, _ = wkv7(*case.tensors, case.state, reset=case.reset, return_state=False, backend=backend)
    assert y.isfinite().all()


@both
@lengths
def test_the_same_call_gives_the_same_bits(make, backend, steps):
    case = make(2, steps, 2, 32, 32, reset=0.1)
    first, second = (case.run(wkv7, backend=backend) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@both
@lengths
def test_a_row_does_not_see_the_other_rows(make, backend, steps):
    case = make(3, steps, 2, 16, 16)
    poisoned = {name: x.clone() for name, x in case.inputs.items()}
    state = case.state.clone()
    for x in (*poisoned.values(), state):
        x[1] = torch.nan
    y, final = wkv7(**poisoned, state=state, backend=backend)
    clean, last = wkv7(*case.tensors, case.state, backend=backend)
    for row in (0, 2):
        torch.testing.assert_close(y[row], clean[row])
        torch.testing.assert_close(final[row], last[row])


# ------------------------------------------------------------------------------------------------- empty and wrong


@both
def test_no_steps_give_the_state_back(make, backend):
    case = make(2, 1, 2, 8, 12)
    nothing = [x[:, :0].clone().requires_grad_() for x in case.tensors]
    state = case.state.clone().requires_grad_()
    y, final = wkv7(*nothing, state, backend=backend)
    assert y.shape == (2, 0, 2, 12)
    assert torch.equal(final, state)
    assert final.data_ptr() != state.data_ptr()
    (grad,) = torch.autograd.grad(final, state, case.dfinal)
    assert torch.equal(grad, case.dfinal)
    _, final = wkv7(*nothing, backend=backend)
    assert torch.equal(final, torch.zeros(2, 2, 12, 8))


@both
@lengths
def test_no_rows_give_no_rows(make, backend, steps):
    case = make(2, steps, 2, 8, 12)
    nothing = [x[:0].clone().requires_grad_() for x in case.tensors]
    y, final = wkv7(*nothing, case.state[0], reset=torch.zeros(0, steps, dtype=torch.bool), backend=backend)
    assert y.shape == (0, steps, 2, 12)
    assert final.shape == (0, 2, 12, 8)
    y.sum().backward()


def _swap(name, change):
    return lambda given: {**given, name: change(given[name])}


WRONG = {
    "r has three dimensions": (_swap("r", lambda x: x[0]), r"\br must .*\(5, 2, 8\)"),
    "log_w of another length": (_swap("log_w", lambda x: x[:, :4]), r"log_w must .*\(2, 5, 2, 8\).*\(2, 4, 2, 8\)"),
    "k of another width": (_swap("k", lambda x: x[..., :7]), r"\bk must .*\(2, 5, 2, 7\)"),
    "a of another batch": (_swap("a", lambda x: x[:1]), r"\ba must .*\(1, 5, 2, 8\)"),
    "b of other heads": (_swap("b", lambda x: x[:, :, :1]), r"\bb must .*\(2, 5, 1, 8\)"),
    "v of another length": (_swap("v", lambda x: x[:, :4]), r"\bv must .*\(2, 4, 2, 12\)"),
    "v has three dimensions": (_swap("v", lambda x: x[..., 0]), r"\bv must .*\(2, 5, 2\)"),
    "state transposed": (_swap("state", lambda x: x.mT), r"state must .*\(2, 2, 12, 8\).*\(2, 2, 8, 12\)"),
    "state of another batch": (_swap("state", lambda x: x[:1]), r"state must .*\(1, 2, 12, 8\)"),
    "state without heads": (_swap("state", lambda x: x[0, 0]), r"state must .*\(12, 8\)"),
    "reset of another length": (_swap("reset", lambda x: x[:, :4]), r"reset must .*\(2, 5\).*\(2, 4\)"),
    "reset of one row": (_swap("reset", lambda x: x[0]), r"reset must .*\(5,\)"),
    "reset of numbers": (_swap("reset", lambda x: x.long()), r"reset must .*bool.*int64"),
    "r of whole numbers": (_swap("r", lambda x: x.long()), r"\br must .*int64"),
    "k of whole numbers": (_swap("k", lambda x: x.int()), r"\bk must .*int32"),
    "v of booleans": (_swap("v", lambda x: x > 0), r"\bv must .*bool"),
    "state of whole numbers": (_swap("state", lambda x: x.long()), r"state must .*int64"),
    "log_w complex": (_swap("log_w", lambda x: x.to(torch.complex64)), r"log_w must .*complex64"),
    "b elsewhere": (_swap("b", lambda x: x.to("meta")), r"\bb must .*cpu.*meta"),
    "state elsewhere": (_swap("state", lambda x: x.to("meta")), r"state must .*cpu.*meta"),
    "reset elsewhere": (_swap("reset", lambda x: x.to("meta")), r"reset must .*cpu.*meta"),
}


@both
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named_in_one_sentence(make, backend, wrong):
    case = make(2, 5, 2, 8, 12, reset=0.2)
    change, sentence = WRONG[wrong]
    with pytest.raises(ValueError, match=sentence) as caught:
        wkv7(**change({**case.inputs, "state": case.state, "reset": case.reset}), backend=backend)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
