"""WKV-7 on a CPU by the compiled kernel in ``cpp/``."""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from core.wkv import build
from core.wkv.autograd import needs_gradients, register, unwatched
from core.wkv.walk import FORWARD, Walk

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
FLOOR = -80.0
"""Of a key's log_w summed over a block, kFloor in cpp/call.h: what float32 can hold."""
_WORK_PER_THREAD = 1 << 20  # state elements times steps that pay for starting a thread
_SIZES = ("batch", "steps", "heads", "dim_k", "dim_v", "threads", "pool", "state_v", "orders", "split")
_forked = False  # OpenMP's threads do not survive a fork


def _after_fork() -> None:
    global _forked  # a process learns this once, from the interpreter
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("type", ctypes.c_int64),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("index", ctypes.c_void_p),
        *((name, _Tensor) for name in ("r", "log_w", "k", "v", "a", "b")),
        ("state", ctypes.c_void_p),
        ("state_batch", ctypes.c_int64),
        ("reset", ctypes.c_void_p),
        ("y", _Tensor),
        ("final_state", ctypes.c_void_p),
        ("block_states", ctypes.c_void_p),
        ("removed", ctypes.c_void_p),
        *((name, _Tensor) for name in ("dr", "dlog_w", "dk", "dv", "da", "db")),
        ("dstate", ctypes.c_void_p),
        ("beyond", ctypes.c_void_p),
    ]


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """None if the kernel is, or can be, compiled here; else why not."""
    return build.library().reason


@torch.compiler.assume_constant_result
def ready() -> bool:
    """Whether the kernel can be used; if not, says so once, with the way to get it."""
    reason = build.library().reason
    if reason is not None:
        _say_once(reason)
    return reason is None


@cache
def _say_once(reason: str) -> None:
    warnings.warn(f"WKV-7 runs on its slower 'chunked' backend: the native kernel is missing, {reason}", stacklevel=2)


def _tensor(x: Tensor) -> _Tensor:
    return _Tensor(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), _TYPES[x.dtype])


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _rows(x: Tensor) -> Tensor:
    """As it is if the kernel can read it: rows of a known type, contiguous within."""
    if x.dtype not in _TYPES:
        x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(inputs: tuple[Tensor, ...], walk: Walk) -> _Call:
    r, _, _, v, _, _ = inputs
    batch, steps, heads, dim_k = r.shape
    call = _Call(batch=batch, steps=steps, heads=heads, dim_k=dim_k, dim_v=v.shape[-1], state_v=v.shape[-1])
    call.orders, call.split = len(walk.orders), walk.split
    work = batch * walk.states(heads) * steps * dim_k * v.shape[-1]
    call.pool = not _forked
    call.threads = max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))
    for name, x in zip(("r", "log_w", "k", "v", "a", "b"), inputs, strict=True):
        setattr(call, name, _tensor(x))
    return call


def _order(walk: Walk, steps: int, reset: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What the kernel needs to know of the walk: the token of each step, and where sequences begin by step."""
    index = None if walk.orders == FORWARD.orders else walk.tokens(steps).contiguous()
    return index, None if reset is None else walk.resets(reset).contiguous()


def _target(x: Tensor, walk: Walk) -> Tensor:
    """What the kernel writes for x: x itself, or a float32 twin where several orders add up or it knows no x.dtype."""
    summed = len(walk.orders) > 1 and not walk.split
    return torch.empty_like(x, dtype=torch.float32) if summed or x.dtype not in _TYPES else x


def _forward(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, reset: Tensor | None,
    want_state: bool, want_saved: bool, orders: str, split: bool, height: int, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    walk = Walk.of(orders, split, height, width)
    y, final, states, removed = _outputs(r, v, want_state, want_saved, walk)
    inputs = tuple(_rows(x) for x in (r, log_w, k, v, a, b))
    index, reset = _order(walk, r.shape[1], reset)
    call = _call(inputs, walk)
    call.index, call.reset = _address(index), _address(reset)
    if state is not None:
        state = state if state[0].is_contiguous() else state.contiguous()
        call.state, call.state_batch = state.data_ptr(), state.stride(0)
    target = _target(y, walk)
    call.y = _tensor(target)
    if want_state:
        call.final_state = final.data_ptr()
    if want_saved:
        call.block_states, call.removed = states.data_ptr(), removed.data_ptr()
    beyond = ctypes.c_int32(0)
    call.beyond = ctypes.addressof(beyond)
    build.library().require().wkv7_forward(ctypes.byref(call))
    if beyond.value:
        raise ValueError(
            f"log_w sums to less than {FLOOR:g} over {build.BLOCK} steps, but the native backend multiplies decays out "
            f"and takes no more (log_w >= {FLOOR / build.BLOCK:g} is always right): use backend='reference'; to empty "
            "the state use reset"
        )
    return target.to(y.dtype), final, states, removed


_op = torch.library.custom_op("greylag::wkv7_native", _forward, mutates_args=(), device_types="cpu")


def _outputs(
    r: Tensor, v: Tensor, want_state: bool, want_saved: bool, walk: Walk
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, steps, heads, dim_k = r.shape
    dim_v, walks, blocks = v.shape[-1], walk.states(heads), (steps + build.BLOCK - 1) // build.BLOCK

    def empty(wanted: bool, *shape: Any) -> Tensor:
        return r.new_empty(shape if wanted else (0,), dtype=torch.float32)

    return (
        torch.empty(v.shape, dtype=r.dtype, device=r.device),
        empty(want_state, batch, walks, dim_v, dim_k),
        empty(want_saved, batch, walks, blocks, dim_k, dim_v),
        empty(want_saved, batch, walks, steps, dim_v),
    )


@torch.library.register_fake("greylag::wkv7_native")
def _(r, log_w, k, v, a, b, state, reset, want_state, want_saved, orders, split, height, width):
    return _outputs(r, v, want_state, want_saved, Walk.of(orders, split, height, width))


@torch.library.custom_op("greylag::wkv7_native_backward", mutates_args=(), device_types="cpu")
def _op_backward(
    dy: Tensor | None, dfinal: Tensor | None, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor | None, states: Tensor, removed: Tensor, orders: str, split: bool, height: int, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    walk, originals = Walk.of(orders, split, height, width), (r, log_w, k, v, a, b)
    inputs = tuple(_rows(x) for x in originals)
    index, reset = _order(walk, r.shape[1], reset)
    call = _call(inputs, walk)
    call.index, call.reset = _address(index), _address(reset)
    call.block_states, call.removed = states.data_ptr(), removed.data_ptr()
    grads = [_target(torch.empty(x.shape, dtype=x.dtype), walk) for x in inputs]
    for name, grad in zip(("dr", "dlog_w", "dk", "dv", "da", "db"), grads, strict=True):
        setattr(call, name, _tensor(grad))
    dy = None if dy is None else _rows(dy)
    if dy is not None:
        call.y = _tensor(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    if dfinal is not None:
        call.final_state = dfinal.data_ptr()
    dstate = states.new_empty(r.shape[0], states.shape[1], v.shape[-1], r.shape[-1])
    call.dstate = dstate.data_ptr()
    build.library().require().wkv7_backward(ctypes.byref(call))
    dr, dlog_w, dk, dv, da, db = (g.to(x.dtype) for g, x in zip(grads, originals, strict=True))
    return dr, dlog_w, dk, dv, da, db, dstate


@torch.library.register_fake("greylag::wkv7_native_backward")
def _(dy, dfinal, r, log_w, k, v, a, b, reset, states, removed, orders, split, height, width):
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (r, log_w, k, v, a, b)]
    return (*grads, states.new_empty(r.shape[0], states.shape[1], v.shape[-1], r.shape[-1]))


register("wkv7_native")


def wkv7_native(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None,
    reset: Tensor | None = None, return_state: bool = True, walk: Walk = FORWARD,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The compiled kernel as a custom op; shapes as :func:`core.wkv.wkv7`, state already (B, S, V, K) float32.

    Raises:
        ValueError: float64 inputs, which it does not compute in; a key's log_w that sums to less than FLOOR over a
            block of 16 steps.
    """
    if r.dtype == torch.float64:
        raise ValueError("the native backend computes in float32: use 'chunked' or 'reference' for float64")
    saved = needs_gradients(r, log_w, k, v, a, b, state)
    plain = not saved and unwatched(r, log_w, k, v, a, b, state, reset)  # spares PyTorch's own work on an op's call
    run = _forward if plain else torch.ops.greylag.wkv7_native
    y, final, *_ = run(r, log_w, k, v, a, b, state, reset, return_state, saved, *walk.plain())
    return y, final if return_state else None
