"""Run the Triton kernels on a CPU, through Triton's interpreter, in a process of its own.

    python run_triton_interpreted.py questions.pt answers.pt

A question is {"inputs": the six, "state", "reset", "dy", "dfinal", "backward_heads", "way"}, its answer the operator's
results and gradients by name. Ways: "plain"; "strided": inputs that lie as (B, H, T, D), one expanded over the batch;
"no final": only y is asked for and used; "no y": only the final state is used; "forward": without gradients;
"compiled": under torch.compile; "far": inputs whose strides exceed 32 bits; "opcheck": PyTorch's own checks of the ops,
with no other answer. "walk": through wkv7 with the walk in the question.

Two things are mended first in Triton 3.8's interpreter: it truncates where GPUs round to nearest, and it multiplies
bfloat16's bits as integers. It also copies every argument back, which would touch all of the far inputs' memory.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from core.wkv import triton as backend
from core.wkv import wkv7
from core.wkv.walk import Walk

torch.set_num_threads(1)
NAMES = ("r", "log_w", "k", "v", "a", "b")


def mend_the_interpreter():
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding(x, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()
        return convert(x, source, target, mode)

    def wide_dot(self, a, b, *rest):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    interpreter._convert_float = rounding
    interpreter.InterpreterBuilder.create_dot = wide_dot
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # CPU tensors were written in place
    backend._precision = lambda dtype: "bf16" if dtype is torch.bfloat16 else "ieee"


def strided(inputs):
    """The same numbers, heads before time; log_w as one row for the whole batch."""
    turned = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}
    turned["log_w"] = inputs["log_w"][:1].expand_as(inputs["log_w"])
    return turned


def far(inputs):
    """The same numbers in one lazily allocated block, two steps' distance beyond 2^31 elements."""
    stride = 2**30 + 64
    block = torch.empty(stride * 2 + 4096, dtype=torch.bfloat16)
    moved, offset = {}, 0
    for name, x in inputs.items():
        batch, steps, heads, dim = x.shape
        assert x.dtype is torch.bfloat16
        assert (steps, batch) == (3, 1)
        place = block.as_strided(x.shape, (0, stride, dim, 1), offset)
        moved[name] = place.copy_(x)
        offset += heads * dim
    return moved


def answer(question):
    way, heads = question["way"], question["backward_heads"]
    inputs, state = question["inputs"], question["state"]
    if way in ("strided", "far"):
        inputs = {"strided": strided, "far": far}[way](inputs)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    first = None if state is None else state.detach().requires_grad_()

    def call(*tensors):
        if way == "walk":
            return wkv7(*tensors, first, reset=question["reset"], walk=Walk(*question["walk"]), backend="triton")
        return backend.wkv7_triton(*tensors, first, question["reset"], way != "no final", heads)

    run = torch.compile(call, fullgraph=True, backend="aot_eager") if way == "compiled" else call
    y, final = run(*leaves.values())
    if way == "forward":
        return {"y": y.detach(), "final": final.detach()}
    outputs = {"y": (y, question["dy"]), "final": (final, question["dfinal"])}
    unused = {"no final": "final", "no y": "y"}.get(way)
    used = [pair for name, pair in outputs.items() if name != unused]
    wanted = [*leaves.values(), *([] if first is None else [first])]
    grads = torch.autograd.grad([x for x, _ in used], wanted, [dx for _, dx in used])
    found = dict(zip([f"d{name}" for name in (*NAMES, "state")], grads, strict=False))
    return {"y": y.detach(), **({} if final is None else {"final": final.detach()}), **found}


def opcheck(question):
    inputs = [x.detach().requires_grad_() for x in question["inputs"].values()]
    heads = inputs[0].shape[2]
    rest = (question["state"], question["reset"], True, True, heads, question["backward_heads"])
    torch.library.opcheck(torch.ops.greylag.wkv7_triton.default, (*inputs, *rest))
    plain = [x.detach() for x in inputs]
    saved = torch.ops.greylag.wkv7_triton(*plain, *rest)[2:]
    given = (question["dy"], question["dfinal"], *plain, question["reset"], *saved, *rest[-2:])
    torch.library.opcheck(torch.ops.greylag.wkv7_triton_backward.default, given)
    return {}


def main(questions, answers):
    mend_the_interpreter()
    found = {}
    for name, question in torch.load(questions).items():
        # What a kernel forgets to write is NaN; not for the far inputs, whose block must stay untouched.
        torch.use_deterministic_algorithms(question["way"] not in ("far", "opcheck"))
        found[name] = (opcheck if question["way"] == "opcheck" else answer)(question)
    torch.save(found, answers)


main(*sys.argv[1:])
