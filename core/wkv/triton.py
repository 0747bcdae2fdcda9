"""WKV-7 on GPUs by Greylag's own Triton kernels: forward, backward and both walking directions in one launch.

For what flash-linear-attention lacks or does by copies: `reset`, K != V, any K up to 256, strided inputs, heads
that walk the sequence from its end. The kernels are in ``triton_kernels.py``, their maths in ``docs/wkv7.md``.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.wkv.autograd import needs_gradients, register
from core.wkv.walk import FORWARD, Walk

MAX_KEY_DIM = 256
_ENOUGH_PROGRAMS = 256  # about two per multiprocessor of a large GPU: below it, value tiles get smaller


@cache
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """None if the kernels can run here, else why not. Under TRITON_INTERPRET=1 they run on CPU tensors, slowly."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch's CUDA and ROCm builds, on Linux)"
    if not torch.cuda.is_available() and not _interpreted():
        return "its kernels need a CUDA or ROCm GPU, and torch sees none"
    return None


def _kernels() -> ModuleType:
    """Imported at first use: Triton is there on Linux only."""
    from core.wkv import triton_kernels

    return triton_kernels


def _ceil_div(x: int, y: int) -> int:
    return (x + y - 1) // y


def _tile(size: int) -> int:
    """The power of two, 16 at least, that holds `size`: what a matrix product in Triton takes."""
    return max(16, 1 << (size - 1).bit_length()) if size else 16


class Plan(NamedTuple):
    """How calls of one kind are cut: so that the compiler spills few registers, not by timings (see docs)."""

    chunk: int
    chunks: int
    walk_tile: int  # values per program of the kernels that carry the state, at most
    walk_warps: int
    tile: int  # values per round of the gradients
    warps: int

    @classmethod
    def of(cls, r: Tensor) -> Plan:
        steps, wide = r.shape[1], _tile(r.shape[-1])
        room = min(64, 4096 // wide)
        warps = 4 if wide < 64 else 8
        if r.dtype == torch.float32:  # products in three parts, each with registers of its own
            return cls(16, _ceil_div(steps, 16), 32, 8 if wide <= 64 else 4, 16, warps)
        chunk = 32 if r.dtype == torch.bfloat16 and wide <= 64 and steps > 16 else 16
        walk_tile = room if r.dtype == torch.bfloat16 else min(room, 32)
        return cls(chunk, _ceil_div(steps, chunk), walk_tile, 4 if wide <= 64 else 8, room, warps)

    def values_per_walk(self, r: Tensor, v: Tensor, rows: int) -> int:
        """The walking kernels' tile: smaller where `rows`, batch times heads, give a GPU too few programs."""
        dim_v = v.shape[-1]
        tile = min(self.walk_tile, _tile(dim_v))
        least = 32 if r.dtype == torch.float32 and r.shape[-1] > 64 else 16  # these spill far more in tiles of 16
        while tile > least and rows * _ceil_div(dim_v, tile) < _ENOUGH_PROGRAMS:
            tile //= 2
        return tile

    def values_per_round(self, v: Tensor) -> int:
        return min(self.tile, _tile(v.shape[-1]))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """How states and inverses are kept for the backward: as the products there read them."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _precision(dtype: torch.dtype) -> str:
    """How products read inputs of `dtype`: float16 by tf32, which has its 10 bits and does not overflow at e^G."""
    if _interpreted():
        return "ieee"  # the interpreter multiplies bfloat16's bits as if they were integers
    if dtype == torch.bfloat16:
        return "bf16"
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if dtype == torch.float16 else "tf32x3"


class _Call(NamedTuple):
    """What every kernel of one call is given."""

    plan: Plan
    inputs: tuple[Tensor, ...]
    strides: tuple[tuple[int, ...], ...]
    reset: Tensor | None
    reset_strides: tuple[int, ...]
    shape: tuple[int, int, int, int, int]  # T, H, heads of the inputs, chunks, heads that walk forward
    sizes: dict[str, Any]

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], reset: Tensor | None, heads: int, backward_heads: int) -> _Call:
        r = inputs[0]
        plan = Plan.of(r)
        _, steps, sources, dim_k = r.shape
        inputs = tuple(_dense(x) for x in inputs)
        marks = None if reset is None else reset.view(torch.uint8)
        sizes = {
            "K": dim_k, "BK": _tile(dim_k), "C": plan.chunk, "HAS_RESET": reset is not None,
            "PRECISION": _precision(r.dtype),
        }  # fmt: skip
        return cls(
            plan, inputs, tuple(_strides(x) for x in inputs), marks, (0, 0) if marks is None else marks.stride(),
            (steps, heads, sources, plan.chunks, heads - backward_heads), sizes,
        )  # fmt: skip

    def launch(self, kernel: str, programs: int, *arguments: Any, **settings: Any) -> None:
        given = (self.inputs, self.strides, self.reset, self.reset_strides, *arguments, *self.shape)
        device = self.inputs[0].device
        if programs:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                getattr(_kernels(), kernel)[(programs,)](*given, **self.sizes, **settings)


def _dense(x: Tensor) -> Tensor:
    """As it is if its last dimension is dense, which is all that the kernels ask."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:3]


def _carries(plan: Plan, state: Tensor | None) -> bool:
    """Whether a state can be other than zero where a chunk starts."""
    return plan.chunks > 1 or state is not None


def _outputs(
    r: Tensor, v: Tensor, state: Tensor | None, want_state: bool, want_saved: bool, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, final state, inverses, states at chunk starts: all of it uninitialised."""
    plan = Plan.of(r)
    batch, steps, _, dim_k = r.shape
    dim_v, kept = v.shape[-1], _wide(r.dtype)
    cut = (batch, heads, plan.chunks)
    return (
        r.new_empty((batch, steps, heads, dim_v)),
        r.new_empty((batch, heads, dim_v, dim_k) if want_state else (0,), dtype=torch.float32),
        r.new_empty((*cut, plan.chunk, plan.chunk), dtype=kept),
        r.new_empty((*cut, dim_k, dim_v) if want_saved and _carries(plan, state) else (0,), dtype=kept),
    )


def _forward(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, reset: Tensor | None,
    want_state: bool, want_saved: bool, heads: int, backward_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, final, inverse, states = _outputs(r, v, state, want_state, want_saved, heads)
    call = _Call.of((r, log_w, k, v, a, b), reset, heads, backward_heads)
    plan, rows, dim_v = call.plan, r.shape[0] * heads, v.shape[-1]
    given = None if state is None else _dense(state)
    tile, carries = plan.values_per_walk(r, v, rows), _carries(plan, state)
    call.launch("invert", rows * plan.chunks, inverse, num_warps=4)
    call.launch(
        "walk", rows * _ceil_div(dim_v, tile),
        given, (0, 0, 0) if given is None else _strides(given), inverse, y, _strides(y), final, states,
        V=dim_v, BV=tile, HAS_STATE=state is not None, READS=carries, WRITES=want_state or plan.chunks > 1,
        SAVES=want_saved, WANT_STATE=want_state, STAGES=2, num_warps=plan.walk_warps,
    )  # fmt: skip
    return y, final, inverse if want_saved else inverse.new_empty(0), states


@torch.library.custom_op("greylag::wkv7_triton", mutates_args=())
def _op(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, reset: Tensor | None,
    want_state: bool, want_saved: bool, heads: int, backward_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _forward(r, log_w, k, v, a, b, state, reset, want_state, want_saved, heads, backward_heads)


@torch.library.register_fake("greylag::wkv7_triton")
def _(r, log_w, k, v, a, b, state, reset, want_state, want_saved, heads, backward_heads):
    y, final, inverse, states = _outputs(r, v, state, want_state, want_saved, heads)
    return y, final, inverse if want_saved else inverse.new_empty(0), states


def _backward(
    dy: Tensor | None, dfinal: Tensor | None, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor | None, inverse: Tensor, states: Tensor, heads: int, backward_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (r, log_w, k, v, a, b)
    call = _Call.of(inputs, reset, heads, backward_heads)
    plan, rows, dim_v = call.plan, r.shape[0] * heads, v.shape[-1]
    batch, steps, sources, dim_k = r.shape
    grads = tuple(x.new_empty((batch, steps, heads, x.shape[-1])) for x in inputs)
    dstate = r.new_empty((batch, heads, dim_v, dim_k), dtype=torch.float32)
    cut = (batch, heads, plan.chunks, dim_k, dim_v)
    dstates = states.new_empty(cut)
    dy = None if dy is None else _dense(dy)
    dy_strides = (0, 0, 0) if dy is None else _strides(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    tile, reads, writes = plan.values_per_walk(r, v, rows), states.numel() > 0, plan.chunks > 1 or dfinal is not None
    if reads or writes:
        call.launch(
            "walk_back", rows * _ceil_div(dim_v, tile), inverse, dy, dy_strides, dfinal, dstates, dstate,
            V=dim_v, BV=tile, HAS_DY=dy is not None, HAS_DFINAL=dfinal is not None, STAGES=2,
            num_warps=plan.walk_warps,
        )  # fmt: skip
    call.launch(
        "gradients", rows * plan.chunks, inverse, states, dstates, dy, dy_strides, grads, tuple(map(_strides, grads)),
        V=dim_v, BV=plan.values_per_round(v), HAS_DY=dy is not None, READS=reads, WRITES=writes, num_warps=plan.warps,
    )  # fmt: skip
    if heads != sources:
        grads = tuple(x.unflatten(2, (-1, sources)).sum(2) for x in grads)
    dr, dlog_w, dk, dv, da, db = grads
    return dr, dlog_w, dk, dv, da, db, dstate


@torch.library.custom_op("greylag::wkv7_triton_backward", mutates_args=())
def _op_backward(
    dy: Tensor | None, dfinal: Tensor | None, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor | None, inverse: Tensor, states: Tensor, heads: int, backward_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(dy, dfinal, r, log_w, k, v, a, b, reset, inverse, states, heads, backward_heads)


@torch.library.register_fake("greylag::wkv7_triton_backward")
def _(dy, dfinal, r, log_w, k, v, a, b, reset, inverse, states, heads, backward_heads):
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (r, log_w, k, v, a, b)]
    shape = (r.shape[0], heads, v.shape[-1], r.shape[-1])
    return (*grads, r.new_empty(shape, dtype=torch.float32))


register("wkv7_triton")


def refuses(r: Tensor) -> str | None:
    """None if the kernels take inputs like r, else why not and what to do."""
    if r.dtype == torch.float64:
        return "it has no float64: use float32, or backend='reference' or 'chunked'"
    most = MAX_KEY_DIM // 2 if r.dtype == torch.float32 else MAX_KEY_DIM  # what an A100's shared memory holds
    if r.shape[-1] > most:
        return f"it takes key dims up to {most} in {r.dtype}, got {r.shape[-1]}: use 'chunked'"
    if r.device.type != "cuda" and not _interpreted():
        return f"it runs on GPUs, and r is on {r.device}: move the tensors there, or use 'native' or 'chunked'"
    return None


def wkv7_triton(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None,
    reset: Tensor | None = None, return_state: bool = True, backward_heads: int = 0, heads: int | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The Triton kernels behind :func:`core.wkv.wkv7`'s convention, state already (B, H, V, K).

    Accurate for log_w >= -2: e^-(32 log_w) must stay in float32's range. Inputs may be strided in any way that
    leaves the last dimension dense; gradients come back contiguous, in their inputs' dtypes.

    Args:
        r, log_w, k, v, a, b, state, reset, return_state: as :func:`core.wkv.wkv7`.
        backward_heads: the last so many of the heads walk from T - 1 down to 0. Their `state` comes in before
            step T - 1 and their final state is the one after step 0. `reset` marks where sequences begin in time:
            a forward head's state is emptied before step t where reset[t]; a backward head's before step t where
            reset[t + 1], and, if `reset` is given at all, before step T - 1, the last sequence's end.
        heads: a multiple of the inputs' heads, whose number it is by default; y, state and final state have so many,
            and head h reads the inputs' head h modulo theirs. With twice their number and half of them backward,
            every head walks both ways.

    Raises:
        ValueError: float64 inputs, a key dim over 256 (float32: 128), tensors that are on no GPU, numbers of heads
            that do not fit.
    """
    reason = refuses(r)
    if reason is not None:
        raise ValueError(f"the triton backend cannot take these inputs: {reason}")
    sources = r.shape[2]
    heads = sources if heads is None else heads
    if heads < sources or heads % sources:
        raise ValueError(f"heads must be a multiple of the inputs' {sources} heads, got {heads}")
    if not 0 <= backward_heads <= heads:
        raise ValueError(f"backward_heads must be between 0 and the number of heads {heads}, got {backward_heads}")
    saved = needs_gradients(r, log_w, k, v, a, b, state)
    y, final, *_ = torch.ops.greylag.wkv7_triton(
        r, log_w, k, v, a, b, state, reset, return_state, saved, heads, backward_heads
    )
    return y, final if return_state else None


def walks(walk: Walk) -> bool:
    """Whether :func:`wkv7_triton_walk` takes `walk` without copies: forward, backward, and both in this order."""
    return walk.orders in (("forward",), ("backward",), ("forward", "backward"))


def wkv7_triton_walk(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None,
    reset: Tensor | None = None, return_state: bool = True, walk: Walk = FORWARD,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """:func:`wkv7_triton` on a walk that :func:`walks` accepts; y is the mean over orders that share a head."""
    assert walks(walk), walk
    sources = r.shape[2]
    heads = walk.states(sources)
    backward_heads = heads // len(walk.orders) if "backward" in walk.orders else 0
    y, final = wkv7_triton(r, log_w, k, v, a, b, state, reset, return_state, backward_heads, heads)
    if heads != sources:
        y = y.unflatten(2, (-1, sources)).mean(2)
    return y, final
