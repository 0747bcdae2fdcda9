"""The Triton kernels without a GPU: their numbers through Triton's interpreter, their code through its compiler.

All questions to the interpreter go to one process (see run_triton_interpreted.py), so that no other test runs under
TRITON_INTERPRET; each test then looks at its own answer. The truth is the float64 recurrence, run the other way round
for heads that walk the sequence from its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.wkv import available_backends, operator, wkv7
from core.wkv import triton as backend
from core.wkv.walk import Walk

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")
HERE = Path(__file__).parent


class Question:
    """A case's shape (B, T, H, K, V) and kind, and how the operator is called on it."""

    def __init__(self, *shape: int, backward: int = 0, way: str = "plain", dtype: str = "float32", **kind: Any):
        self.shape, self.backward, self.way, self.dtype, self.kind = shape, backward, way, dtype, kind

    def case(self, make):
        case = make(*self.shape, **self.kind).to(getattr(torch, self.dtype))
        if self.way == "strided":  # one log_w for the whole batch, as the inputs there share theirs
            log_w = case.inputs["log_w"][:1].expand_as(case.inputs["log_w"])
            case = case.change(inputs={**case.inputs, "log_w": log_w})
        if self.way == "no final":
            case = case.change(dfinal=torch.zeros_like(case.dfinal))
        if self.way == "no y":
            case = case.change(dy=torch.zeros_like(case.dy))
        return case

    def asked(self, make) -> dict[str, Any]:
        case = self.case(make)
        return {
            "inputs": {name: x.clone() for name, x in case.inputs.items()}, "state": case.state, "reset": case.reset,
            "dy": case.dy, "dfinal": case.dfinal, "backward_heads": self.backward, "way": self.way,
        }  # fmt: skip

    def truth(self, make) -> dict[str, np.ndarray]:
        """The oracle's answer, head by head in the order it walks."""
        case, heads = self.case(make), self.shape[2]
        ahead = slice(0, heads - self.backward)
        parts = [] if self.backward == heads else [_of_heads(case, ahead).truth]
        if self.backward:
            turned = _turned(_of_heads(case, slice(heads - self.backward, heads))).truth
            whole = ("final", "dstate")
            parts.append({name: x if name in whole else x[:, ::-1] for name, x in turned.items()})
        return {
            name: np.concatenate([part[name] for part in parts], axis=1 if name in ("final", "dstate") else 2)
            for name in parts[0]
        }


def _of_heads(case, heads: slice):
    return case.change(
        inputs={name: x[:, :, heads] for name, x in case.inputs.items()}, dy=case.dy[:, :, heads],
        state=None if case.state is None else case.state[:, heads], dfinal=case.dfinal[:, heads],
    )  # fmt: skip


def _turned(case):
    """Time reversed. A sequence that began at t + 1 now ends before it: the state is emptied before step t."""
    marks = None
    if case.reset is not None:
        marks = torch.ones_like(case.reset)
        marks[:, 1:] = case.reset.flip(1)[:, :-1]
    inputs = {name: x.flip(1) for name, x in case.inputs.items()}
    return case.change(inputs=inputs, dy=case.dy.flip(1), reset=marks)


_FLOAT32 = {
    **{f"{steps} steps": Question(2, steps, 1, 16, 16) for steps in (1, 2, 3, 4, 5)},
    **{f"{steps} steps without a state": Question(1, steps, 1, 16, 16, state=False) for steps in (5, 16, 17)},
    "one chunk, no final state": Question(1, 9, 1, 16, 16, way="no final", state=False),
    "no final state": Question(1, 37, 1, 16, 16, way="no final"),
    "only the final state": Question(1, 37, 1, 16, 16, way="no y", reset=0.1),
    "only the final state of one chunk": Question(1, 7, 1, 16, 16, way="no y", state=False),
    "RWKV-7's heads": Question(1, 35, 1, 64, 64),
    "K < V, several tiles": Question(1, 37, 1, 16, 72, reset=0.1),
    "K > V": Question(1, 21, 2, 40, 16),
    "K = 128": Question(1, 18, 1, 128, 16),
    "resets": Question(2, 50, 1, 16, 16, reset=0.2, state=False),
    "resets at every step": Question(1, 20, 1, 16, 16, reset=1.0),
    "backward": Question(2, 21, 2, 16, 16, backward=2),
    "both directions": Question(2, 35, 2, 16, 24, backward=1),
    "both directions with resets": Question(2, 35, 3, 16, 16, backward=2, reset=0.15),
    "strided": Question(2, 19, 2, 16, 24, way="strided", backward=1, reset=0.1),
    "compiled": Question(1, 20, 2, 16, 16, way="compiled", backward=1, reset=0.1),
    "smallest decays": Question(1, 48, 1, 16, 16, kind="floor"),
    "one key all the time": Question(1, 48, 1, 16, 16, kind="same_key"),
    "a mirror": Question(1, 48, 1, 16, 16, kind="mirror"),
}
_HALF = {
    "bf16": Question(1, 70, 1, 64, 64, dtype="bfloat16"),
    "bf16, resets, both directions": Question(1, 40, 2, 32, 48, dtype="bfloat16", backward=1, reset=0.05),
    "bf16, smallest decays": Question(1, 70, 1, 32, 32, dtype="bfloat16", kind="floor"),
    "bf16, one key all the time": Question(1, 70, 1, 32, 32, dtype="bfloat16", kind="same_key"),
    "bf16, beyond 2^31 elements": Question(1, 3, 2, 16, 16, dtype="bfloat16", way="far", backward=1),
    "fp16": Question(1, 20, 1, 32, 32, dtype="float16", kind="floor"),
}
_CHECKS = {
    "opcheck": Question(1, 20, 2, 16, 16, way="opcheck", backward=1, reset=0.1),
    "opcheck of one chunk": Question(1, 3, 1, 16, 16, way="opcheck", state=False),
}


def _infinite(make) -> dict[str, Any]:
    """An infinite state, which a reset at step 5 empties; chunks have 16 steps."""
    question = Question(1, 40, 1, 16, 16, way="forward").asked(make)
    marks = torch.zeros(1, 40, dtype=torch.bool)
    marks[:, 5] = True
    return {**question, "state": torch.full_like(question["state"], torch.inf), "reset": marks}


_WALKS = {
    "a backward walk": (("backward",), False),
    "heads shared out": (("forward", "backward"), True),
    "every head both ways": (("forward", "backward"), False),
    "columns, by copies": (("down",), False, (3, 7)),
}


def _walked(make, walk: tuple[Any, ...]) -> dict[str, Any]:
    """A question about a walk, with one state per recurrence and, but for columns, resets."""
    question = Question(2, 21, 2, 16, 24, way="walk", reset=0.0 if "down" in walk[0] else 0.15).asked(make)
    if len(walk[0]) == 2 and not walk[1]:
        state, dfinal = (torch.cat((question[x], question[x].flip(1)), 1) for x in ("state", "dfinal"))
        question |= {"state": state, "dfinal": dfinal}
    return {**question, "walk": walk}


@pytest.fixture(scope="module")
def answers(make, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("triton")
    questions = {name: question.asked(make) for name, question in {**_FLOAT32, **_HALF, **_CHECKS}.items()}
    questions["an infinite state"] = _infinite(make)
    questions |= {name: _walked(make, walk) for name, walk in _WALKS.items()}
    torch.save(questions, folder / "questions.pt")
    command = [sys.executable, str(HERE / "run_triton_interpreted.py"), "questions.pt", "answers.pt"]
    subprocess.run(command, cwd=folder, check=True, timeout=300, env=_environment())
    return torch.load(folder / "answers.pt")


def _environment() -> dict[str, str]:
    root = str(HERE.parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("name", _FLOAT32)
def test_float32(make, answers, agrees, name):
    truth, found = _FLOAT32[name].truth(make), answers[name]
    assert set(found) >= set(truth) - {"final", "dstate"}
    agrees(found, truth)


@pytest.mark.parametrize("name", _HALF)
def test_half_precision(make, answers, agrees, name):
    """fla's own tests allow 0.007 forward and 0.008 for gradients; y and the gradients are rounded to the dtype.

    With one key all the time, which fla does not try, the gradient of a is a difference of nearly equal terms.
    """
    question = _HALF[name]
    scale = 1.0 if question.dtype == "bfloat16" else 0.125  # products of float16 inputs keep three more bits
    for key, x in answers[name].items():
        assert x.dtype is (torch.float32 if key in ("final", "dstate") else getattr(torch, question.dtype)), key
    gradients = 0.01 if "one key" in name else 0.008
    agrees(answers[name], question.truth(make), forward=0.006 * scale, gradients=gradients * scale)


@pytest.mark.parametrize("name", _WALKS)
def test_walks(make, answers, agrees, name):
    """Against permuted copies by the float64 reference, which the walks' own tests hold to the recurrence."""
    asked = _walked(make, _WALKS[name])
    leaves = {key: x.double().requires_grad_() for key, x in asked["inputs"].items()}
    state = asked["state"].double().requires_grad_()
    y, final = wkv7(*leaves.values(), state, reset=asked["reset"], walk=Walk(*asked["walk"]), backend="reference")
    assert final is not None
    grads = torch.autograd.grad([y, final], [*leaves.values(), state], [asked["dy"].double(), asked["dfinal"].double()])
    truth = dict(zip([f"d{key}" for key in (*leaves, "state")], grads, strict=True))
    agrees(answers[name], {"y": y, "final": final, **truth})


def test_a_reset_ends_an_infinite_state_with_its_chunk(make, answers, error):
    found = answers["an infinite state"]
    case = make(1, 40, 1, 16, 16)
    clean = case.change(state=torch.zeros_like(case.state), reset=_infinite(make)["reset"]).truth
    assert error(found["y"][:, 16:], clean["y"][:, 16:]) <= 2e-6
    assert error(found["final"], clean["final"]) <= 2e-6


@pytest.mark.parametrize("name", _CHECKS)
def test_pytorchs_own_checks_of_the_ops(answers, name):
    assert answers[name] == {}


# ------------------------------------------------------------------------------------------------------ compiled code

_ANY, _A100 = 99 * 1024, 163 * 1024  # bytes of shared memory that one program can have


@pytest.mark.parametrize(
    ("capability", "dtype", "dims", "shared", "stack"),
    [
        (90, "bfloat16", (64, 64), _ANY, 128),
        (80, "float32", (64, 64), _ANY, 1024),
        pytest.param(80, "bfloat16", (256, 256), _A100, 256, marks=pytest.mark.slow),
        pytest.param(80, "float32", (128, 128), _A100, 4096, marks=pytest.mark.slow),
    ],
)
def test_the_kernels_compile_for_gpus(capability, dtype, dims, shared, stack):
    """By Triton's compiler and its ptxas, which need no GPU; few registers may be spilled to the stack."""
    command = [sys.executable, str(HERE / "run_triton_compiled.py"), str(capability), dtype, *map(str, dims)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout)
    assert [x["kernel"] for x in kernels] == ["invert", "walk", "walk_back", "gradients"]
    for x in kernels:
        assert x["shared"] <= shared, x
        assert x["stack"] <= stack, x


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels can run")
def test_without_a_gpu_the_reason_is_a_sentence(make):
    reason = available_backends()["triton"]
    assert reason is not None
    assert "GPU" in reason
    with pytest.raises(ValueError, match=r"triton.*cannot run here.*GPU"):
        wkv7(*make(1, 5, 1, 8, 8).tensors, backend="triton")


def test_without_triton_the_reason_names_it(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in (backend.unavailable() or "")


def test_what_the_kernels_do_not_take_is_said(make, monkeypatch):
    with pytest.raises(ValueError, match=r"triton.*float64.*'reference' or 'chunked'"):
        backend.wkv7_triton(*make(1, 5, 1, 8, 8, dtype=torch.float64).tensors)
    with pytest.raises(ValueError, match=r"triton.*128 in torch.float32, got 130: use 'chunked'"):
        backend.wkv7_triton(*make(1, 5, 1, 130, 8).tensors)
    with pytest.raises(ValueError, match=r"triton.*runs on GPUs, and r is on cpu"):
        backend.wkv7_triton(*make(1, 5, 1, 8, 8).tensors)
    monkeypatch.setattr(backend, "refuses", lambda r: None)
    with pytest.raises(ValueError, match=r"backward_heads must be between 0 and the number of heads 1, got 2"):
        backend.wkv7_triton(*make(1, 5, 1, 8, 8).tensors, backward_heads=2)
    with pytest.raises(ValueError, match=r"heads must be a multiple of the inputs' 2 heads, got 3"):
        backend.wkv7_triton(*make(1, 5, 2, 8, 8).tensors, heads=3)


class _Somewhere:
    """A tensor on a GPU as far as the choice of a backend looks at it."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, dim, dtype=torch.bfloat16):
        self.dtype, self.shape = dtype, torch.Size((2, 100, 4, dim))


@pytest.mark.parametrize(
    ("there", "r", "others", "chosen"),
    [
        ({"fla", "triton"}, _Somewhere(64), {}, "fla"),
        ({"fla", "triton"}, _Somewhere(64), {"state": 1}, "triton"),
        ({"fla", "triton"}, _Somewhere(64), {"reset": 1}, "triton"),
        ({"fla", "triton"}, _Somewhere(64), {"v": _Somewhere(32)}, "triton"),
        ({"fla", "triton"}, _Somewhere(64), {"walk": Walk(("backward",))}, "triton"),
        ({"fla", "triton"}, _Somewhere(64), {"walk": Walk(("up",), grid=(10, 10))}, "fla"),
        ({"fla", "triton"}, _Somewhere(48), {}, "triton"),
        ({"fla", "triton"}, _Somewhere(256, torch.float32), {"reset": 1}, "fla"),
        ({"fla", "triton"}, _Somewhere(512), {}, "chunked"),
        ({"fla", "triton"}, _Somewhere(64, torch.float64), {}, "chunked"),
        ({"fla"}, _Somewhere(64), {"reset": 1}, "fla"),
        ({"triton"}, _Somewhere(64), {}, "triton"),
        (set(), _Somewhere(64), {}, "chunked"),
    ],
)
def test_what_a_gpu_tensor_takes(monkeypatch, there, r, others, chosen):
    for name in ("fla", "triton"):
        run = operator.BACKENDS[name].run
        reason = None if name in there else "it is not there"
        monkeypatch.setitem(operator.BACKENDS, name, operator.Backend(run, lambda reason=reason: reason))
    assert operator._choose(r, None, **others) == chosen


def test_importing_the_operator_costs_no_triton():
    code = "import sys, core.wkv; core.wkv.available_backends(); sys.exit('core.wkv.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [2, 16, 63, 64, 200])
@pytest.mark.parametrize("reset", [0.0, 0.05])
@pytest.mark.parametrize("dims", [(64, 64), (40, 96)])
@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 2e-5), ("bfloat16", 0.008), ("float16", 0.004)], ids=lambda x: str(x)
)
def test_on_a_gpu(make, agrees, steps, reset, dims, backward, dtype, bound):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    question = Question(2, steps, 2, *dims, reset=reset, backward=backward, dtype=dtype)
    case = question.case(make)

    def on_gpu(r, log_w, k, v, a, b, state, *, reset=None):
        moved = [x.cuda() for x in (r, log_w, k, v, a, b, state)]
        y, final = backend.wkv7_triton(*moved, None if reset is None else reset.cuda(), True, backward)
        return y.cpu(), final.cpu()

    agrees(case.run(on_gpu), question.truth(make), forward=bound, gradients=bound)
