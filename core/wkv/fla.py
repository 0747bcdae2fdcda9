"""WKV-7 through flash-linear-attention's Triton kernels (GPU).

fla keeps its state as (N, H, K, V), so it is transposed both ways, and one of its two kernels scales r by
1/sqrt(K) unless told otherwise. ``reset`` becomes fla's packed form: the batch is laid out as one row of B*T
steps with ``cu_seqlens`` at every row start and every reset.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

RECURRENT_BELOW = 64  # fla's own layer switches to the step kernel here, forward only
MAX_KEY_DIM = 256
LOWER_BOUND = -0.60653066  # log of RWKV-7's smallest decay: licenses fla's tensor-core scheme


class Kernels(NamedTuple):
    """fla.ops.rwkv7's two entry points."""

    chunk: Callable[..., Any]
    recurrent: Callable[..., Any]


@cache
def kernels() -> Kernels:
    """Imported at first use: fla takes seconds to import."""
    from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7

    return Kernels(chunk_rwkv7, fused_recurrent_rwkv7)


@cache
def unavailable() -> str | None:
    """None if fla's kernels can run here, else why not. A passed import proves nothing: Triton needs a driver."""
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed (pip install flash-linear-attention, Linux only)"
    if not torch.cuda.is_available():
        return "its Triton kernels need a CUDA or ROCm GPU, and torch sees none"
    return None


class Packing(NamedTuple):
    """A batch with resets as one packed row: piece borders, and each row's first and last piece."""

    cu_seqlens: Tensor  # (pieces + 1,)
    first: Tensor  # (B,)
    last: Tensor  # (B,)

    @classmethod
    def of(cls, reset: Tensor) -> Packing:
        starts = reset.clone()
        starts[:, 0] = True
        borders = starts.flatten().nonzero().flatten()
        pieces_until = starts.sum(dim=1).cumsum(dim=0)
        cu_seqlens = torch.cat((borders, borders.new_tensor([reset.numel()])))
        first = torch.cat((pieces_until.new_zeros(1), pieces_until[:-1]))
        return cls(cu_seqlens, first, pieces_until - 1)


def _run(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None,
    return_state: bool, forward_only: bool, cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One fla call in our convention; state (N, H, V, K)."""
    initial = None if state is None else state.mT.contiguous()
    options = {"scale": 1.0, "initial_state": initial, "output_final_state": return_state, "cu_seqlens": cu_seqlens}
    inputs = [x.contiguous() for x in (r, log_w.float(), k.to(r.dtype), v.to(r.dtype), a.to(r.dtype), b.to(r.dtype))]
    if forward_only and r.shape[1] < RECURRENT_BELOW:
        y, final = kernels().recurrent(*inputs, **options)
    else:
        # lower_bound tells fla the gate's range; without it chunks of 16 without tensor cores are used.
        y, final = kernels().chunk(*inputs, lower_bound=LOWER_BOUND, **options)
    return y.to(r.dtype), final.mT if return_state else None


def _packed(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None,
    reset: Tensor, return_state: bool, forward_only: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    packing = Packing.of(reset)
    r1, log_w1, k1, v1, a1, b1 = (x.reshape(1, -1, *x.shape[2:]) for x in (r, log_w, k, v, a, b))
    if state is not None:
        kept = state.masked_fill(reset[:, 0, None, None, None], 0.0)
        pieces = packing.cu_seqlens.numel() - 1
        state = kept.new_zeros(pieces, *kept.shape[1:]).index_copy(0, packing.first, kept)
    y, final = _run(r1, log_w1, k1, v1, a1, b1, state, return_state, forward_only, packing.cu_seqlens)
    y = y.reshape(*r.shape[:3], v.shape[-1])
    return y, final[packing.last] if final is not None else None


def refuses(r: Tensor) -> str | None:
    """None if fla takes inputs like r, else why not and what to do."""
    if r.dtype == torch.float64:
        return "it has no float64: use float32, or backend='reference' or 'chunked'"
    if r.shape[-1] > MAX_KEY_DIM:
        return f"it takes key dims up to {MAX_KEY_DIM}, got {r.shape[-1]}: use 'chunked'"
    return None


def wkv7_fla(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """fla's kernels behind :func:`core.wkv.wkv7`'s convention, state already (B, H, V, K).

    Under torch.compile fla's own autograd function breaks the graph; then the call goes through the custom op
    ``greylag::wkv7_fla``, which computes the forward once more in its backward.

    Raises:
        ValueError: float64 inputs or a key dim over 256, which fla does not take.
    """
    reason = refuses(r)
    if reason is not None:
        raise ValueError(f"the fla backend cannot take these inputs: {reason}")
    if torch.compiler.is_compiling():
        y, final = torch.ops.greylag.wkv7_fla(r, log_w, k, v, a, b, state, reset, return_state)
        return y, final if return_state else None
    return _eager(r, log_w, k, v, a, b, state, reset, return_state)


def _eager(r, log_w, k, v, a, b, state, reset, return_state):
    tensors = (r, log_w, k, v, a, b, state)
    forward_only = not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors))
    with torch.autocast(r.device.type, enabled=False):
        if reset is None:
            return _run(r, log_w, k, v, a, b, state, return_state, forward_only, None)
        return _packed(r, log_w, k, v, a, b, state, reset, return_state, forward_only)


@torch.library.custom_op("greylag::wkv7_fla", mutates_args=())
def _op(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None, want_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with torch.no_grad():
        y, final = _eager(r, log_w, k, v, a, b, state, reset, want_state)
    return y.contiguous(), final.contiguous() if final is not None else y.new_empty(0, dtype=torch.float32)


@torch.library.register_fake("greylag::wkv7_fla")
def _(r, log_w, k, v, a, b, state, reset, want_state):
    y = torch.empty(v.shape, dtype=r.dtype, device=r.device)
    shape = (r.shape[0], r.shape[2], v.shape[-1], r.shape[-1]) if want_state else (0,)
    return y, r.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("greylag::wkv7_fla_backward", mutates_args=())
def _op_backward(
    dy: Tensor | None, dfinal: Tensor | None, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    floats = [r, log_w, k, v, a, b] + ([] if state is None else [state])
    # A custom op runs below autograd: without this, what is not fla's own autograd function (a cast, a reshape)
    # would leave no trace, and its gradient would be lost without a word.
    below_autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with torch.enable_grad(), below_autograd:
        leaves = [x.detach().requires_grad_() for x in floats]
        r, log_w, k, v, a, b, *rest = leaves
        y, final = _eager(r, log_w, k, v, a, b, rest[0] if rest else None, reset, dfinal is not None)
        pairs = [(out, grad) for out, grad in ((y, dy), (final, dfinal)) if out is not None and grad is not None]
        outs, grads = [out for out, _ in pairs], [grad for _, grad in pairs]
        inputs = torch.autograd.grad(outs, leaves, grads, allow_unused=True)
    filled = zip(inputs, leaves, strict=True)
    return [(torch.zeros_like(x) if g is None else g).to(x.dtype).contiguous() for g, x in filled]


@torch.library.register_fake("greylag::wkv7_fla_backward")
def _(dy, dfinal, r, log_w, k, v, a, b, state, reset):
    floats = [r, log_w, k, v, a, b] + ([] if state is None else [state])
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in floats]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, state, reset, want_state = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, state, reset)
    ctx.want_state = want_state


def _autograd(ctx, dy, dfinal):
    *inputs, state, reset = ctx.saved_tensors
    dfinal = dfinal if ctx.want_state else None
    grads = torch.ops.greylag.wkv7_fla_backward(dy, dfinal, *inputs, state, reset)
    dstate = grads[6] if state is not None else None
    return (*grads[:6], dstate, None, None)


torch.library.register_autograd("greylag::wkv7_fla", _autograd, setup_context=_setup_context)
