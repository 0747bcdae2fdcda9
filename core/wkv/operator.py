"""The WKV-7 operator: one function, one convention, several backends.

    S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T,      y_t = S_t r_t

Source: the RWKV-7 paper (arXiv 2503.14456), section 4. Conventions that differ elsewhere and are fixed here:
``log_w`` is the natural logarithm of the decay (<= 0; RWKV-7's lies in [-e^-0.5, 0]), the state is
(B, H, V, K) with rows = value, the removal reads the state before decay, and r is not scaled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from core.wkv import fla, native, triton
from core.wkv.chunked import wkv7_chunked
from core.wkv.reference import without_autocast, wkv7_reference, wkv7_step
from core.wkv.walk import FORWARD, Run, Walk, walk_copies

ENVIRONMENT = "GREYLAG_WKV"


class Backend(NamedTuple):
    """A way to compute the operator, and the reason why it cannot run here (None: it can).

    `walks` tells which walks `run` takes by itself, as its last argument; the others get copies in forward order.
    """

    run: Callable[..., tuple[Tensor, Tensor | None]]
    unavailable: Callable[[], str | None]
    walks: Callable[[Walk], bool] = lambda walk: walk == FORWARD


BACKENDS: dict[str, Backend] = {
    "reference": Backend(wkv7_reference, lambda: None),
    "chunked": Backend(wkv7_chunked, lambda: None),
    "native": Backend(native.wkv7_native, native.unavailable, lambda walk: True),
    "fla": Backend(fla.wkv7_fla, fla.unavailable),
    "triton": Backend(triton.wkv7_triton_walk, triton.unavailable, triton.walks),
}
_override: list[str] = []  # a stack; a plain list, since torch.compile can guard on it


def available_backends() -> dict[str, str | None]:
    """Name -> None if the backend runs here, else one sentence that says why not."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the named backend within the block, process-wide; raises ValueError as :func:`wkv7` does."""
    _require(name)
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def requested() -> str | None:
    """The backend that :func:`use_backend` or the environment names; None leaves the choice to the operator."""
    return (_override[-1] if _override else None) or os.environ.get(ENVIRONMENT) or None


def _require(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"unknown WKV backend {name!r}: choose one of {', '.join(BACKENDS)}")
    reason = BACKENDS[name].unavailable()
    if reason is not None:
        raise ValueError(f"the WKV backend {name!r} cannot run here: {reason}")


def _choose(
    r: Tensor, backend: str | None, v: Tensor | None = None, state: Tensor | None = None, reset: Tensor | None = None,
    walk: Walk = FORWARD,
) -> str:  # fmt: skip
    name = backend or requested()
    if name:
        _require(name)
        return name
    if r.is_cuda:
        return _choose_for_gpu(r, v, state, reset, walk)
    if r.device.type == "cpu" and r.dtype != torch.float64 and native.ready():
        return "native"
    return "chunked"


def _choose_for_gpu(r: Tensor, v: Tensor | None, state: Tensor | None, reset: Tensor | None, walk: Walk) -> str:
    """fla for plain calls, `triton` for what fla takes by copies or not at all: a rule not yet measured on a GPU."""
    by_fla = BACKENDS["fla"].unavailable() is None and fla.refuses(r) is None
    by_triton = BACKENDS["triton"].unavailable() is None and triton.refuses(r) is None
    dim_k = r.shape[-1]
    square = dim_k & (dim_k - 1) == 0 and (v is None or v.shape[-1] == dim_k)
    walked = walk != FORWARD and triton.walks(walk)
    if by_fla and (not by_triton or (square and not walked and state is None and reset is None)):
        return "fla"
    return "triton" if by_triton else "chunked"


def _check(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> None:
    if r.dim() != 4:
        raise ValueError(f"r must have shape (batch, time, heads, key dim), got {tuple(r.shape)}")
    for name, x in (("log_w", log_w), ("k", k), ("a", a), ("b", b)):
        if x.shape != r.shape:
            raise ValueError(f"{name} must have r's shape {tuple(r.shape)}, got {tuple(x.shape)}")
    if v.dim() != 4 or v.shape[:3] != r.shape[:3]:
        raise ValueError(f"v must have shape {(*r.shape[:3], 'value dim')}, got {tuple(v.shape)}")
    for name, x in (("r", r), ("log_w", log_w), ("k", k), ("v", v), ("a", a), ("b", b)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")
        if x.device != r.device:
            raise ValueError(f"{name} must be on r's device {r.device}, got {x.device}")


def _initial(state: Tensor | None, r: Tensor, v: Tensor, walk: Walk) -> Tensor | None:
    """The state as (B, S, V, K) in the compute dtype; one without batch is shared by all rows."""
    if state is None:
        return None
    wanted = (r.shape[0], walk.states(r.shape[2]), v.shape[-1], r.shape[-1])
    # By rank first: comparing a batch of unknown size with a number of heads would tie torch.export to it.
    if state.dim() not in (3, 4) or tuple(state.shape) != wanted[4 - state.dim() :]:
        raise ValueError(
            f"state must have shape {wanted} (batch, heads, value dim, key dim) or {wanted[1:]}, "
            f"got {tuple(state.shape)}"
        )
    if not state.is_floating_point():
        raise ValueError(f"state must be a floating-point tensor, got {state.dtype}")
    if state.device != r.device:
        raise ValueError(f"state must be on r's device {r.device}, got {state.device}")
    return state.to(torch.float64 if r.dtype == torch.float64 else torch.float32).expand(wanted)


def _check_reset(reset: Tensor | None, r: Tensor) -> None:
    if reset is None:
        return
    if reset.dtype != torch.bool or reset.shape != r.shape[:2] or reset.device != r.device:
        raise ValueError(
            f"reset must be a bool tensor of shape {tuple(r.shape[:2])} (batch, time) on {r.device}, "
            f"got {reset.dtype} of shape {tuple(reset.shape)} on {reset.device}"
        )


def _single_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None,
    reset: Tensor | None, return_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """T = 1, the step of generation: without a state the removal has nothing to remove."""
    if reset is not None and state is not None:
        state = state.masked_fill(reset[:, :1, None, None], 0.0)
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    with without_autocast(r.device):
        q, w, key, value, remove, write = (x[:, 0].to(dtype) for x in (r, log_w, k, v, a, b))
        if state is None:
            state = value.new_zeros(*value.shape, key.shape[-1])
        y, state = wkv7_step(q, w, key, value, remove, write, state)
    return y.unsqueeze(1).to(r.dtype), state if return_state else None


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    walk: Walk = FORWARD,
    return_state: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-7's generalised delta rule over a batch of sequences, differentiable in every float argument.

    Args:
        r: receptance, (B, T, H, K), float64, float32, bfloat16 or float16.
        log_w: natural logarithm of the decay, <= 0, (B, T, H, K); float32 is advised whatever r's dtype.
            `chunked` and `triton` are accurate for >= -2 (RWKV-7's own range ends at -e^-0.5 = -0.6065),
            `native` for >= -5.
        k: key, (B, T, H, K).
        v: value, (B, T, H, V); V may differ from K.
        a: removal key, (B, T, H, K); ``-kk`` in RWKV-7.
        b: replacement key, (B, T, H, K); ``kk * iclr`` in RWKV-7.
        state: (B, H, V, K), or (H, V, K) shared by the batch; zeros if None.
        reset: bool (B, T); True empties the state before that step (packed sequences, episodes).
        walk: in which orders the tokens are met, see :class:`core.wkv.walk.Walk`; with several, every state argument
            and result is (B, S, V, K), S = ``walk.states(H)``, and y the mean over the orders that share a head.
        return_state: False skips the last state update and returns None for it.
        backend: a name of :func:`available_backends`; None takes the innermost :func:`use_backend`, the
            environment variable GREYLAG_WKV, or the best one for the device.

    Returns:
        y (B, T, H, V) in r's dtype, and the final state (B, H, V, K), float32 (float64 for float64 inputs).
        A step with log_w = k = v = a = b = 0 leaves the state exactly as it was.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that is unknown or unavailable.
    """
    _check(r, log_w, k, v, a, b)
    if not isinstance(walk, Walk):
        raise ValueError(f"walk must be a core.Walk, such as Walk(('forward', 'backward')), got {walk!r}")
    walk.check(r.shape[1], r.shape[2])
    state = _initial(state, r, v, walk)
    _check_reset(reset, r)
    name = _choose(r, backend, v, state, reset, walk)
    inputs, run = (r, log_w, k, v, a, b), _runner(name, r, v)
    if walk == FORWARD:
        return run(*inputs, state, reset, return_state)
    if run is BACKENDS[name].run and BACKENDS[name].walks(walk):
        return run(*inputs, state, reset, return_state, walk)
    return walk_copies(run, walk, inputs, state, reset, return_state)


def _runner(name: str, r: Tensor, v: Tensor) -> Run:
    """The named backend's function, or the plain recurrence where there is too little to do."""
    if name == "reference" or r.numel() == 0 or v.numel() == 0:
        return wkv7_reference
    return _single_step if r.shape[1] == 1 else BACKENDS[name].run
