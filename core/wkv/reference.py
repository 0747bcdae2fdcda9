"""WKV-7 step by step: the plain recurrence, the truth every other backend is held to.

Source: the RWKV-7 paper (arXiv 2503.14456), section 4; BlinkDL/RWKV-LM ``RWKV-v7/rwkv_v7_numpy.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off for `device`; devices that have none, such as "meta", are left as they are."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def wkv7_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token. r, log_w, k, a, b: (B, H, K); v: (B, H, V); state: (B, H, V, K). Returns y (B, H, V), state."""
    removed = torch.matmul(state, a.unsqueeze(-1))  # the state BEFORE decay is what the removal reads
    state = state * log_w.exp().unsqueeze(-2) + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return torch.matmul(state, r.unsqueeze(-1)).squeeze(-1), state


def wkv7_reference(
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
    """The recurrence as a Python loop under autograd; shapes as :func:`core.wkv.wkv7`.

    Computes in float64 if the inputs are float64, else in float32; y comes back in r's dtype.
    """
    compute = torch.float64 if r.dtype == torch.float64 else torch.float32
    with without_autocast(r.device):
        # unbind, not x[:, t]: autograd would answer each of those with a gradient as long as the sequence
        r_, log_w_, k_, v_, a_, b_ = (x.to(compute).unbind(dim=1) for x in (r, log_w, k, v, a, b))
        batch, steps, heads, dim_k = r.shape
        if state is None:
            state = v.new_zeros(batch, heads, v.shape[-1], dim_k, dtype=compute)
        current = state.to(compute).expand(batch, -1, -1, -1)
        outputs: list[Tensor] = []
        for t in range(steps):
            if reset is not None:
                current = current.masked_fill(reset[:, t, None, None, None], 0.0)
            y, current = wkv7_step(r_[t], log_w_[t], k_[t], v_[t], a_[t], b_[t], current)
            outputs.append(y)
        # A whole of nothing still has a shape; clone() keeps the caller's state from being aliased.
        y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v, dtype=compute)
        current = current if steps else current.clone()
    return y.to(r.dtype), current if return_state else None
