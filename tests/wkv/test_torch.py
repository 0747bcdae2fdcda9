"""The operator under PyTorch's machinery: opcheck, compile, autocast, checkpointing, export, copies."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.wkv import use_backend, wkv7
from core.wkv.walk import FORWARD, Walk

lengths = pytest.mark.parametrize("steps", [1, 5, 32, 70])


@pytest.fixture(autouse=True)
def no_compiled_code_left():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(found, truth, bound=0.0):
    for name, x in truth.items():
        torch.testing.assert_close(found[name], x, rtol=bound, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


class Layer(nn.Module):
    """The operator with learned inputs, in small: what TimeMix does to it."""

    def __init__(self, dim=16, heads=2, value_dim=12, *, reset=False, with_state=True):
        super().__init__()
        self.heads, self.value_dim, self.with_state, self.reset = heads, value_dim, with_state, reset
        self.maps = nn.ModuleList(nn.Linear(dim, dim) for _ in range(5))
        self.value = nn.Linear(dim, heads * value_dim)
        self.state = nn.Parameter(torch.randn(heads, value_dim, dim // heads))

    def forward(self, x, state=None):
        batch, steps, _ = x.shape
        r, decay, k, kk, iclr = (m(x).view(batch, steps, self.heads, -1) for m in self.maps)
        log_w = -0.6065 * decay.float().sigmoid()
        kk = torch.nn.functional.normalize(kk.float(), dim=-1)
        v = self.value(x).view(batch, steps, self.heads, self.value_dim)
        reset = x[..., 0] > 1.0 if self.reset else None
        if state is None and self.with_state:
            state = self.state
        return wkv7(r, log_w, k, v, -kk, kk * iclr.sigmoid(), state, reset=reset)


def gradients(layer, call, x):
    """Output, final state and all gradients of one forward and backward."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y, final = call(x)
    (y.float().square().sum() + final.sin().sum()).backward()
    grads = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "final": final.detach(), "x": x.grad, **grads}


# ------------------------------------------------------------------------------------------------------- the ops


# opcheck's own fake copies of the leaves
quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@quiet
@pytest.mark.parametrize("steps", [5, 70])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("reset", [0.0, 0.2])
@pytest.mark.parametrize("want_state", [True, False])
def test_opcheck_forward(make, steps, state, reset, want_state):
    case = make(2, steps, 2, 8, 12, state=state, reset=reset)
    inputs = [x.clone().requires_grad_() for x in case.tensors]
    given = case.state.clone().requires_grad_() if state else None
    for want_saved in (True, False):
        # without saved tensors there is nothing to differentiate with: the op is then called under no_grad
        args = inputs if want_saved else [x.detach() for x in inputs]
        first = given if given is None or want_saved else given.detach()
        torch.library.opcheck(
            torch.ops.greylag.wkv7_chunked.default, (*args, first, case.reset, want_state, want_saved)
        )


@pytest.mark.parametrize("steps", [5, 70])
@pytest.mark.parametrize("reset", [0.0, 0.2])
@pytest.mark.parametrize("used", ["both", "y", "final"])
def test_opcheck_backward(make, steps, reset, used):
    case = make(2, steps, 2, 8, 12, reset=reset)
    saved = torch.ops.greylag.wkv7_chunked(*case.tensors, case.state, case.reset, True, True)[2:]
    dy, dfinal = (None if used == "final" else case.dy), (None if used == "y" else case.dfinal)
    torch.library.opcheck(
        torch.ops.greylag.wkv7_chunked_backward.default, (dy, dfinal, *case.tensors, case.reset, *saved)
    )


@quiet
@pytest.mark.parametrize("steps", [5, 70])
@pytest.mark.parametrize("reset", [0.0, 0.2])
@pytest.mark.parametrize("walk", [FORWARD, Walk(("forward", "backward"))], ids=["forward", "both"])
def test_opcheck_native(make, steps, reset, walk):
    case = make(2, steps, 2, 8, 12, state=False, reset=reset)
    inputs = [x.clone().requires_grad_() for x in case.tensors]
    shape = (2, walk.states(2), 12, 8)
    for state in (None, torch.randn(shape, requires_grad=True)):
        args = (case.reset, True, True, *walk.plain())
        torch.library.opcheck(torch.ops.greylag.wkv7_native.default, (*inputs, state, *args))
        saved = torch.ops.greylag.wkv7_native(*case.tensors, state, *args)[2:]
        torch.library.opcheck(
            torch.ops.greylag.wkv7_native_backward.default,
            (case.dy, torch.randn(shape), *case.tensors, case.reset, *(x.detach() for x in saved), *walk.plain()),
        )


@quiet
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_opcheck_other_dtypes(make, dtype):
    case = make(2, 40, 2, 8, 12, reset=0.1).to(dtype)
    inputs = [x.clone().requires_grad_() for x in case.tensors]
    torch.library.opcheck(torch.ops.greylag.wkv7_chunked.default, (*inputs, case.state, case.reset, True, True))


# --------------------------------------------------------------------------------------------------- torch.compile


@lengths
@pytest.mark.parametrize("reset", [False, True])
def test_compile_whole_graph(steps, reset):
    layer, x = Layer(reset=reset), torch.randn(2, steps, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(gradients(layer, compiled, x), gradients(layer, layer, x), 1e-6)


def test_compile_with_inductor():
    layer, x = Layer(reset=True), torch.randn(2, 40, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    same(gradients(layer, compiled, x), gradients(layer, layer, x), 1e-4)


def test_compile_with_dynamic_lengths():
    layer = Layer(reset=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (5, 33, 70, 100, 31):
        x = torch.randn(2, steps, 16)
        same(gradients(layer, compiled, x), gradients(layer, layer, x), 1e-6)


def test_compile_without_gradients_and_with_a_carried_state():
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    state = expected = None
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 9, 16)
            (y, state), (truth, expected) = compiled(x, state), layer(x, expected)
            same({"y": y, "state": state}, {"y": truth, "state": expected}, 1e-6)


def test_compile_follows_the_chosen_backend():
    layer, x = Layer(), torch.randn(2, 4, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with use_backend("reference"):
        assert torch.equal(compiled(x)[0], layer(x)[0])
    assert torch.equal(compiled(x)[0], layer(x)[0])


# -------------------------------------------------------------------------------------------------------- autocast


@lengths
@pytest.mark.parametrize("backend", ["reference", "chunked", "native"])
def test_autocast_does_not_reach_the_algebra(make, steps, backend):
    case = make(2, steps, 2, 32, 32, reset=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = wkv7(*case.tensors, case.state, reset=case.reset, backend=backend)
    plain, last = wkv7(*case.tensors, case.state, reset=case.reset, backend=backend)
    assert y.dtype is final.dtype is torch.float32
    assert torch.equal(y, plain)
    assert torch.equal(final, last)


@pytest.mark.parametrize("steps", [5, 70])
def test_autocast_does_not_reach_the_backward(make, agrees, steps):
    case = make(2, steps, 2, 32, 32, reset=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.run(wkv7, backend="chunked")
    agrees(found, case.truth)


@lengths
def test_autocast_around_a_layer(error, steps):
    """Linear layers hand over bfloat16: the result is the plain one within those inputs' rounding."""
    layer, x = Layer(), torch.randn(2, steps, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, layer, x)
    assert found["y"].dtype is torch.bfloat16
    assert found["final"].dtype is torch.float32
    for name, value in gradients(layer, layer, x).items():
        assert error(found[name].float(), value) <= 0.05, name


# ---------------------------------------------------------------------------------------------------- checkpointing


@lengths
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reset", [False, True])
def test_activation_checkpointing(steps, reentrant, reset):
    layer, x = Layer(reset=reset), torch.randn(2, steps, 16)

    def checkpointed(x):
        return checkpoint(layer, x, use_reentrant=reentrant)

    same(gradients(layer, checkpointed, x), gradients(layer, layer, x))


def test_activation_checkpointing_compiled():
    layer, x = Layer(), torch.randn(2, 40, 16)
    compiled = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    same(gradients(layer, compiled, x), gradients(layer, layer, x), 1e-6)


# ------------------------------------------------------------------------------------------------- export and copies


def round_trip(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@lengths
@pytest.mark.parametrize("reset", [False, True])
def test_export_round_trip(steps, reset):
    layer, x = Layer(reset=reset).eval(), torch.randn(2, steps, 16)
    loaded = round_trip(torch.export.export(layer, (x,)))
    other = torch.randn(2, steps, 16)
    for found, truth in zip(loaded(other), layer(other), strict=True):
        assert torch.equal(found, truth)


def test_export_with_a_free_length():
    """One exported program for every length and batch but one step, which is a graph of its own."""
    layer = Layer(reset=True).eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("steps", min=2)}}
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(3, 40, 16),), dynamic_shapes=shapes)
    loaded = round_trip(program)
    for batch, steps in ((2, 2), (3, 31), (4, 32), (2, 33), (5, 100)):
        x = torch.randn(batch, steps, 16)
        for found, truth in zip(loaded(x), layer(x), strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def test_it_runs_on_meta_and_fake_tensors():
    """Shapes without numbers: for parameter counts, memory plans and FSDP's deferred initialisation."""
    for steps in (1, 40):
        with torch.device("meta"):
            y, final = Layer()(torch.empty(2, steps, 16))
        assert y.shape == (2, steps, 2, 12)
        assert final.shape == (2, 2, 12, 8)
        assert y.is_meta
        with torch._subclasses.FakeTensorMode():
            y, final = Layer()(torch.empty(2, steps, 16))
        assert final.shape == (2, 2, 12, 8)


def test_threads_may_call_it_together(make):
    """Data loaders and servers do; nothing in the operator is shared between calls."""
    from concurrent.futures import ThreadPoolExecutor

    cases = [make(2, steps, 2, 16, 16) for steps in (40, 41, 64, 65)]
    alone = [case.run(wkv7) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for together, truth in zip(pool.map(lambda case: case.run(wkv7), cases), alone, strict=True):
            same(together, truth)


def test_nothing_is_warned_about(make):
    case = make(2, 40, 2, 8, 8, reset=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.run(wkv7)
