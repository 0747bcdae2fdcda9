"""WKV-7 on a CPU by the compiled kernel in ``native.cpp``."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from core.wkv import build

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_WORK_PER_THREAD = 1 << 20  # state elements times steps that pay for starting a thread


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
        *((name, ctypes.c_int64) for name in ("batch", "steps", "heads", "dim_k", "dim_v", "threads")),
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


def _rows(x: Tensor) -> Tensor:
    """As it is if the kernel can read it: rows of a known type, contiguous within."""
    if x.dtype not in _TYPES:
        x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(inputs: tuple[Tensor, ...], reset: Tensor | None) -> _Call:
    r, _, _, v, _, _ = inputs
    batch, steps, heads, dim_k = r.shape
    call = _Call(batch=batch, steps=steps, heads=heads, dim_k=dim_k, dim_v=v.shape[-1])
    work = batch * steps * heads * dim_k * v.shape[-1]
    call.threads = max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))
    for name, x in zip(("r", "log_w", "k", "v", "a", "b"), inputs, strict=True):
        setattr(call, name, _tensor(x))
    if reset is not None:
        call.reset = reset.data_ptr()
    return call


@torch.library.custom_op("greylag::wkv7_native", mutates_args=(), device_types="cpu")
def _op(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, reset: Tensor | None,
    want_state: bool, want_saved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, final, states, removed = _outputs(r, v, want_state, want_saved)
    inputs = tuple(_rows(x) for x in (r, log_w, k, v, a, b))
    reset = None if reset is None else reset.contiguous()
    call = _call(inputs, reset)
    if state is not None:
        state = state if state[0].is_contiguous() else state.contiguous()
        call.state, call.state_batch = state.data_ptr(), state.stride(0)
    target = y if y.dtype in _TYPES else y.float()
    call.y = _tensor(target)
    if want_state:
        call.final_state = final.data_ptr()
    if want_saved:
        call.block_states, call.removed = states.data_ptr(), removed.data_ptr()
    build.library().require().wkv7_forward(ctypes.byref(call))
    return target.to(y.dtype), final, states, removed


def _outputs(r: Tensor, v: Tensor, want_state: bool, want_saved: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, steps, heads, dim_k = r.shape
    dim_v, blocks = v.shape[-1], (steps + build.BLOCK - 1) // build.BLOCK

    def empty(wanted: bool, *shape: Any) -> Tensor:
        return r.new_empty(shape if wanted else (0,), dtype=torch.float32)

    return (
        torch.empty(v.shape, dtype=r.dtype, device=r.device),
        empty(want_state, batch, heads, dim_v, dim_k),
        empty(want_saved, batch, heads, blocks, dim_v, dim_k),
        empty(want_saved, batch, steps, heads, dim_v),
    )


@torch.library.register_fake("greylag::wkv7_native")
def _(r, log_w, k, v, a, b, state, reset, want_state, want_saved):
    return _outputs(r, v, want_state, want_saved)


@torch.library.custom_op("greylag::wkv7_native_backward", mutates_args=(), device_types="cpu")
def _op_backward(
    dy: Tensor | None, dfinal: Tensor | None, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor | None, states: Tensor, removed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = tuple(_rows(x) for x in (r, log_w, k, v, a, b))
    reset = None if reset is None else reset.contiguous()
    call = _call(inputs, reset)
    call.block_states, call.removed = states.data_ptr(), removed.data_ptr()
    grads = [torch.empty(x.shape, dtype=x.dtype) for x in inputs]
    for name, grad in zip(("dr", "dlog_w", "dk", "dv", "da", "db"), grads, strict=True):
        setattr(call, name, _tensor(grad))
    dy = None if dy is None else _rows(dy)
    if dy is not None:
        call.y = _tensor(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    if dfinal is not None:
        call.final_state = dfinal.data_ptr()
    dstate = states.new_empty(r.shape[0], r.shape[2], v.shape[-1], r.shape[-1])
    call.dstate = dstate.data_ptr()
    build.library().require().wkv7_backward(ctypes.byref(call))
    dr, dlog_w, dk, dv, da, db = (g.to(x.dtype) for g, x in zip(grads, (r, log_w, k, v, a, b), strict=True))
    return dr, dlog_w, dk, dv, da, db, dstate


@torch.library.register_fake("greylag::wkv7_native_backward")
def _(dy, dfinal, r, log_w, k, v, a, b, reset, states, removed):
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (r, log_w, k, v, a, b)]
    return (*grads, states.new_empty(r.shape[0], r.shape[2], v.shape[-1], r.shape[-1]))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, state, reset, _, _ = inputs
    ctx.has_state = state is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*tensors, reset, *output[2:])


def _autograd(ctx, dy, dfinal, *_):
    *inputs, reset, states, removed = ctx.saved_tensors
    *grads, dstate = torch.ops.greylag.wkv7_native_backward(dy, dfinal, *inputs, reset, states, removed)
    return (*grads, dstate if ctx.has_state else None, None, None, None)


torch.library.register_autograd("greylag::wkv7_native", _autograd, setup_context=_setup_context)


def wkv7_native(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None,
    reset: Tensor | None = None, return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The compiled kernel as a custom op; shapes as :func:`core.wkv.wkv7`, state already (B, H, V, K) float32.

    Accurate for log_w >= -5 (a block's decays are multiplied out in float32).

    Raises:
        ValueError: float64 inputs, which it does not compute in.
    """
    if r.dtype == torch.float64:
        raise ValueError("the native backend computes in float32: use 'chunked' or 'reference' for float64")
    tensors = (r, log_w, k, v, a, b, state)
    saved = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, final, *_ = torch.ops.greylag.wkv7_native(r, log_w, k, v, a, b, state, reset, return_state, saved)
    return y, final if return_state else None
