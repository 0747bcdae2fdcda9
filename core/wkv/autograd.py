"""How WKV-7's custom ops meet autograd: one set-up for every backend that brings its own backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def needs_gradients(*tensors: Tensor | None) -> bool:
    """Whether a call on these will be differentiated, so that its op has to keep what the backward needs."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def unwatched(*tensors: Tensor | None) -> bool:
    """Whether nobody traces, transforms or records what becomes of them, so that a plain call may stand for an op's."""
    return (
        not torch.compiler.is_compiling()
        and all(x is None or type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore[reportAttributeAccessIssue]
    )


def register(name: str) -> None:
    """Make ``greylag::<name>`` differentiable by ``greylag::<name>_backward``.

    Both ops, and their fakes, must be defined. Their signatures, with settings that are no tensors at the end:

        name(r, log_w, k, v, a, b, state?, reset?, want_state, want_saved, *settings) -> y, final, *saved
        name_backward(dy?, dfinal?, r, log_w, k, v, a, b, reset?, *saved, *settings)
            -> dr, dlog_w, dk, dv, da, db, dstate

    `final` is an empty stand-in unless `want_state`, every `saved` one unless `want_saved`.
    """
    backward_op = getattr(torch.ops.greylag, f"{name}_backward")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, state, reset, want_state, settings = inputs[:6], inputs[6], inputs[7], inputs[8], inputs[10:]
        ctx.has_state, ctx.want_state, ctx.settings = state is not None, want_state, settings
        ctx.set_materialize_grads(False)  # else zeros as large as the saved states would be made
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*tensors, reset, *output[2:])

    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        dfinal = dfinal if ctx.want_state else None  # else it belongs to the empty stand-in
        *grads, dstate = backward_op(dy, dfinal, *ctx.saved_tensors, *ctx.settings)
        none_for_the_rest = (None,) * (3 + len(ctx.settings))  # reset, want_state, want_saved, settings
        return (*grads, dstate if ctx.has_state else None, *none_for_the_rest)

    torch.library.register_autograd(f"greylag::{name}", backward, setup_context=setup_context)
