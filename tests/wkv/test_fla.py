"""The fla adapter, on any machine: fla's kernels are replaced by a stand-in with fla's own convention.

The stand-in wraps fla's plain-torch recurrence (fla/ops/generalized_delta_rule/dplr/naive.py) and enforces what
the Triton kernels demand: state (N, H, K, V), packed sequences as one row, contiguous inputs. Every call is also
bound to the real kernels' signatures, so that an argument fla does not know fails here and not on a GPU.
"""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

from core.wkv import available_backends, operator, wkv7
from core.wkv import fla as adapter

pytest.importorskip("fla", reason="flash-linear-attention is not installed")


def _sequence(r, w, k, v, a, b, state):
    """One piece, [1, T, H, D], by fla's naive code, which scales r by K^-0.5 and wants [B, H, T, D]."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    q, k, v, a, b, w = (x.transpose(1, 2).float() for x in (r, k, v, a, b, w))
    y, final = dplr_recurrence(q * q.shape[-1] ** 0.5, k, v, a, b, w, initial_state=state)
    return y.transpose(1, 2), final


class StandIn:
    """fla.ops.rwkv7 as the adapter sees it; `log` holds each call's kernel and arguments."""

    def __init__(self):
        self.log = []

    def kernels(self):
        return adapter.Kernels(functools.partial(self._call, "chunk"), functools.partial(self._call, "recurrent"))

    def _call(self, kernel, *args, **kwargs):
        from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7

        real = {"chunk": chunk_rwkv7, "recurrent": fused_recurrent_rwkv7}[kernel]
        bound = inspect.signature(inspect.unwrap(real)).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        names = list(given)[:6]  # r, w, k, v and then a, b or kk, a, by position
        self.log.append((kernel, given))
        inputs = [given[name] for name in names]
        state, cu = given["initial_state"], given["cu_seqlens"]
        y, final = self._compute(inputs, state, cu, given["scale"])
        if kernel == "recurrent" and torch.is_grad_enabled():
            assert not any(x.requires_grad for x in inputs), "fused_recurrent_rwkv7 has no backward"
        return y.to(inputs[3].dtype), final if given["output_final_state"] else None

    @staticmethod
    def _compute(inputs, state, cu, scale):
        r, k, v = inputs[0], inputs[2], inputs[3]
        assert all(x.is_contiguous() for x in inputs), "fla's kernels read contiguous memory"
        assert inputs[1].dtype is torch.float32
        assert scale == 1.0
        rows = r.shape[0] if cu is None else len(cu) - 1
        if state is not None:
            assert state.shape == (rows, r.shape[2], k.shape[-1], v.shape[-1]), "fla's state is (N, H, K, V)"
            assert state.dtype is torch.float32
            assert state.is_contiguous()
        if cu is None:
            pieces = [(slice(row, row + 1), slice(None)) for row in range(rows)]
        else:
            assert r.shape[0] == 1, "cu_seqlens needs one row"
            assert cu.dtype is torch.int64
            assert cu[0] == 0
            assert cu[-1] == r.shape[1]
            assert (cu.diff() > 0).all(), "no empty pieces"
            pieces = [(slice(0, 1), slice(i, j)) for i, j in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)]
        results = [
            _sequence(*(x[where] for x in inputs), None if state is None else state[n : n + 1])
            for n, where in enumerate(pieces)
        ]
        ys, finals = zip(*results, strict=True)
        return torch.cat(ys, dim=0 if cu is None else 1), torch.cat(finals)


@pytest.fixture
def fla(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(adapter, "kernels", stand_in.kernels)
    monkeypatch.setitem(operator.BACKENDS, "fla", operator.Backend(adapter.wkv7_fla, lambda: None))
    return stand_in


by_fla = functools.partial(wkv7, backend="fla")


@pytest.mark.parametrize("steps", [1, 2, 17, 70])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("reset", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("heads", [(16, 16), (16, 24), (24, 8)])
def test_results_states_and_gradients(fla, make, agrees, steps, state, reset, heads):
    case = make(3, steps, 2, *heads, state=state, reset=reset)
    agrees(case.run(by_fla), case.truth)


@pytest.mark.parametrize("where", ["first", "last", "all", "none", "one row"])
def test_resets_at_the_edges(fla, make, agrees, where):
    reset = torch.zeros(3, 20, dtype=torch.bool)
    reset[{"first": (..., 0), "last": (..., -1), "all": ..., "none": (0, slice(0)), "one row": (1, 7)}[where]] = True
    case = make(3, 20, 2, 16, 24).change(reset=reset)
    agrees(case.run(by_fla), case.truth)


def test_a_state_for_all_rows(fla, make, agrees):
    case = make(3, 20, 2, 16, 24, reset=0.1)
    case = case.change(state=case.state[0].clone())
    agrees(case.run(by_fla), case.truth)


def test_resets_become_piece_borders(fla, make):
    case = make(2, 6, 1, 8, 8)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 2] = reset[1, 0] = reset[1, 5] = True
    wkv7(*case.tensors, case.state, reset=reset, backend="fla")
    ((_, given),) = fla.log
    assert given["cu_seqlens"].tolist() == [0, 2, 6, 11, 12]
    state = given["initial_state"]
    assert torch.equal(state[0], case.state[0].mT)
    assert not state[1:].any()  # row 1 begins with a reset: its state is dropped


def test_without_reset_the_batch_stays_a_batch(fla, make):
    case = make(2, 6, 1, 8, 8)
    wkv7(*case.tensors, case.state, backend="fla")
    ((_, given),) = fla.log
    assert given["cu_seqlens"] is None
    assert torch.equal(given["initial_state"], case.state.mT)


def test_return_state_reaches_the_kernel(fla, make):
    case = make(2, 6, 1, 8, 8)
    _, final = wkv7(*case.tensors, case.state, return_state=False, backend="fla")
    assert final is None
    assert fla.log[0][1]["output_final_state"] is False


def test_the_step_kernel_only_where_no_gradient_is_wanted(fla, make):
    short, long = make(1, 8, 1, 8, 8), make(1, 80, 1, 8, 8)
    wkv7(*short.tensors, backend="fla")
    short.run(by_fla)
    with torch.no_grad():
        wkv7(*(x.clone().requires_grad_() for x in short.tensors), backend="fla")
        wkv7(*long.tensors, backend="fla")
    assert [kernel for kernel, _ in fla.log] == ["recurrent", "chunk", "recurrent", "chunk"]


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize("reset", [0.0, 0.1])
def test_half_precision(fla, make, error, dtype, unit, reset):
    case = make(2, 20, 2, 16, 24, reset=reset).to(dtype)
    found = case.run(by_fla)
    assert found["y"].dtype is dtype
    assert found["final"].dtype is torch.float32
    assert error(found["final"], case.truth["final"]) <= 2e-6
    assert error(found["y"], case.truth["y"]) <= unit + 5e-6


def test_inputs_need_not_be_contiguous(fla, make, agrees):
    case = make(2, 20, 3, 16, 24, reset=0.1)
    views = case.change(inputs={n: x.transpose(1, 2).contiguous().transpose(1, 2) for n, x in case.inputs.items()})
    for inner in (views, views.change(reset=None)):
        y, final = wkv7(*inner.tensors, inner.state, reset=inner.reset, backend="fla")
        agrees({"y": y, "final": final}, inner.truth)


def test_autocast_does_not_reach_it(fla, make, agrees):
    case = make(2, 20, 2, 16, 24, reset=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = wkv7(*case.tensors, case.state, reset=case.reset, backend="fla")
    agrees({"y": y, "final": final}, case.truth)


def test_it_compiles_as_one_graph(fla, make, agrees):
    """fla's own autograd function breaks the graph, so that compiled code goes through a custom op."""
    torch._dynamo.reset()
    compiled = torch.compile(by_fla, fullgraph=True, backend="aot_eager")
    for reset in (0.0, 0.1):
        case = make(2, 20, 2, 16, 24, reset=reset)
        agrees(case.run(compiled), case.truth)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("reset", [0.0, 0.1])
def test_opcheck(fla, make, reset):
    case = make(2, 9, 2, 8, 12, reset=reset)
    inputs = [x.clone().requires_grad_() for x in case.tensors]
    torch.library.opcheck(torch.ops.greylag.wkv7_fla.default, (*inputs, case.state, case.reset, True))
    backward = (case.dy, case.dfinal, *case.tensors, case.state, case.reset)
    # opcheck's dispatch modes would stand between that op's inner autograd and its tensors: by hand.
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [x if x is None else mode.from_tensor(x) for x in backward]
        promised = torch.ops.greylag.wkv7_fla_backward(*fakes)
    for x, y in zip(torch.ops.greylag.wkv7_fla_backward(*backward), promised, strict=True):
        assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


def test_what_fla_does_not_take_is_said(fla, make):
    with pytest.raises(ValueError, match=r"fla.*float64.*'reference' or 'chunked'"):
        wkv7(*make(1, 5, 1, 8, 8, dtype=torch.float64).tensors, backend="fla")
    with pytest.raises(ValueError, match=r"fla.*256.*260"):
        wkv7(*make(1, 5, 1, 260, 8).tensors, backend="fla")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels can run")
def test_without_a_gpu_the_reason_is_a_sentence(make):
    adapter.unavailable.cache_clear()
    reason = available_backends()["fla"]
    assert reason is not None
    assert "GPU" in reason
    with pytest.raises(ValueError, match="fla.*cannot run here.*GPU"):
        wkv7(*make(1, 5, 1, 8, 8).tensors, backend="fla")


def test_without_fla_the_reason_names_the_package(monkeypatch):
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: None)
    adapter.unavailable.cache_clear()
    try:
        reason = adapter.unavailable()
        assert reason is not None
        assert "pip install flash-linear-attention" in reason
    finally:
        adapter.unavailable.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [2, 63, 64, 200])
@pytest.mark.parametrize("reset", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_kernels(make, error, steps, reset, dtype):
    """On a GPU: fla's own tests allow 0.008 for half precision; TF32 products are the float32 bound."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = make(2, steps, 2, 64, 64, reset=reset).to(dtype)

    def on_gpu(r, log_w, k, v, a, b, state=None, *, reset=None):
        moved = [x.cuda() for x in (r, log_w, k, v, a, b)]
        marks = None if reset is None else reset.cuda()
        y, final = wkv7(*moved, None if state is None else state.cuda(), reset=marks, backend="fla")
        return y.cpu(), final.cpu()

    for name, x in case.run(on_gpu).items():
        assert error(x, case.truth[name]) <= 0.008, name
