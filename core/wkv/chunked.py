"""WKV-7 in chunks: pure PyTorch matrix products on any device, with a closed-form backward.

Within a chunk of c steps the recurrence is a lower-triangular system; only the state passed from chunk to
chunk is sequential. With G the inclusive cumulative sum of log_w, E = G - log_w and S the chunk's first state,

    rh = r e^G, ah = a e^E, kh = k e^-G, bh = b e^-G          (queries and keys, scaled to the chunk's start)
    A_rk = tril(rh kh'), A_rb = tril(rh bh'), A_ak = stril(ah kh'), A_ab = stril(ah bh')
    U = (I - A_ab)^-1 (ah S' + A_ak v)                          (U_t = S_{t-1} a_t, what each step removes)
    S_next = S diag(e^Gc) + U' bt + v' kt,   bt = bh e^Gc, kt = kh e^Gc
    Y = rh S' + A_rb U + A_rk v

(' is the transpose). RWKV-7's decay is bounded, log_w >= -e^-0.5, so that e^-G <= e^19.5 at c = 32: float32
needs no offset and no sub-chunks. On a CPU a call with G < -64 is refused; e^88 is where float32 ends. Stored for the
backward: S per chunk, U and the inverse; the rest is made anew. A sequence that fits one chunk never forms a V x K
state unless one comes in or is asked for.

The structure is that of flash-linear-attention's ``ops/generalized_delta_rule/dplr``; the backward and the
treatment of ``reset`` are derived in ``docs/wkv7.md``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.wkv.autograd import needs_gradients, register
from core.wkv.pieces import backward_row, forward_row, spoilt_rows
from core.wkv.reference import without_autocast

CHUNK = 32  # measured optimum on CPUs; also the longest sequence that takes the one-chunk path
FLOOR = -64.0  # of a key's log_w summed over a chunk: float32 then has 10^10 left for r, k, v before e^64 overflows


def _ceil_div(x: int, y: int) -> int:
    return (x + y - 1) // y


class _Layout(NamedTuple):
    """How (B, T, H, D) is cut: `chunks` chunks of `size` steps, the last one padded with neutral steps."""

    batch: int
    steps: int
    heads: int
    chunks: int
    size: int

    @classmethod
    def of(cls, r: Tensor) -> _Layout:
        batch, steps, heads, _ = r.shape
        # Equal chunks, rounded to 4 for vector units: 196 steps become 7 x 28 and pad nothing. Written without a
        # branch and in whole numbers, so that torch.export can carry a free length through.
        share = _ceil_div(steps, _ceil_div(steps, CHUNK))
        size: int = torch.sym_min(steps, 4 * _ceil_div(share, 4))  # pyright: ignore[reportAssignmentType]
        return cls(batch, steps, heads, _ceil_div(steps, size), size)

    def cut(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, T, H, D) -> (chunks, B*H, size, D), zeros at the end; may be a view of x."""
        x, missing = x.to(dtype), self.chunks * self.size - self.steps
        if missing:  # F.pad copies even where it adds nothing
            x = F.pad(x, (0, 0, 0, 0, 0, missing))
        x = x.reshape(self.batch, self.chunks, self.size, self.heads, -1)
        return x.permute(1, 0, 3, 2, 4).reshape(self.chunks, self.batch * self.heads, self.size, -1)

    def join(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The inverse of :meth:`cut`, contiguous and never a view."""
        out = x.new_empty(self.batch, self.chunks, self.size, self.heads, x.shape[-1], dtype=dtype)
        out.copy_(x.unflatten(1, (self.batch, self.heads)).permute(1, 0, 3, 2, 4))
        return out.flatten(1, 2)[:, : self.steps].contiguous()


def _stack(upper: Tensor, lower: Tensor, scale_upper: Tensor, scale_lower: Tensor) -> Tensor:
    """[upper * scale_upper; lower * scale_lower] along the rows, without the copies of `cat`."""
    size = upper.shape[2]
    out = upper.new_empty(*upper.shape[:2], 2 * size, upper.shape[3])
    torch.mul(upper, scale_upper, out=out[:, :, :size])
    torch.mul(lower, scale_lower, out=out[:, :, size:])
    return out


class _Segments(NamedTuple):
    """What `reset` leaves: pairs of steps, reads of the incoming state, writes to the outgoing one, its passage.

    Masks of 0 and 1. A product with 0 lets an infinite state through as NaN, so :meth:`block` selects.
    """

    pairs: Tensor  # (count, B*H, 2 size, 2 size)
    first: Tensor  # (count, B*H, size, 1)
    last: Tensor  # (count, B*H, size, 1)
    whole: Tensor  # (count, B*H, 1, 1)

    @classmethod
    def of(cls, reset: Tensor, layout: _Layout, dtype: torch.dtype) -> _Segments:
        marks = reset[:, :, None, None].expand(-1, -1, layout.heads, 1)
        number = layout.cut(marks, dtype).cumsum(dim=2)
        final = number[:, :, -1:]
        pairs = (number == number.mT).to(dtype).repeat(1, 1, 2, 2)
        return cls(pairs, (number == 0).to(dtype), (number == final).to(dtype), (final == 0).to(dtype))

    @staticmethod
    def block(x: Tensor, mask: Tensor) -> Tensor:
        """x in place, 0 wherever the mask is, whatever stood there."""
        return x.masked_fill_(mask == 0, 0.0)


class _Chunks(NamedTuple):
    """One call's inputs, cut and scaled; every tensor (count, B*H, rows, columns)."""

    v: Tensor
    up: Tensor  # e^G, scales r
    up_before: Tensor  # e^E, scales a
    down: Tensor  # e^-G, scales k and b
    queries: Tensor  # [rh; ah]
    keys: Tensor  # [kh; bh]
    queries_in: Tensor  # as queries, rows that a reset cuts off from the incoming state zeroed
    keys_out: Tensor  # [kt; bt], rows that a reset cuts off from the outgoing state zeroed
    pass_on: Tensor  # e^Gc, or 0 where a reset lies in the chunk: (count, B*H, 1, K)
    to_end: Tensor  # e^Gc masked as keys_out, (count, B*H, 1 or 2 size, K)
    mask: Tensor  # which entries of queries keys' exist, (..., 2 size, 2 size)
    reads: Tensor | None  # rows of queries_in that read, (count, B*H, 2 size, 1)
    guard: _Segments | None  # if nobody looks afterwards: these must hold back what is not finite by themselves

    def causal(self, x: Tensor) -> Tensor:
        """Pairs of steps with those that do not exist set to 0, in place."""
        return x.mul_(self.mask) if self.guard is None else self.guard.block(x, self.mask)


def _prepare(
    layout: _Layout,
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    reset: Tensor | None,
) -> _Chunks:
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    r, log_w, k, v, a, b = (layout.cut(x, dtype) for x in (r, log_w, k, v, a, b))
    total = log_w.cumsum(dim=2)
    up, up_before, down = total.exp(), (total - log_w).exp_(), total.neg().exp_()
    end = up[:, :, -1:]
    queries, keys = _stack(r, a, up, up_before), _stack(k, b, down, down)
    ones = r.new_ones(layout.size, layout.size)
    lower, strict = ones.tril(), ones.tril(-1)
    mask = torch.cat((torch.cat((lower, lower), 1), torch.cat((strict, strict), 1)), 0)
    if reset is None:
        return _Chunks(v, up, up_before, down, queries, keys, queries, keys * end, end, end, mask, None, None)
    segments = _Segments.of(reset, layout, dtype)
    reads, to_end = segments.first.repeat(1, 1, 2, 1), end * segments.last.repeat(1, 1, 2, 1)
    return _Chunks(
        v, up, up_before, down, queries, keys, queries * reads, keys * to_end,
        end * segments.whole, to_end, mask * segments.pairs, reads, None if _can_look(r) else segments,
    )  # fmt: skip


def _can_look(x: Tensor) -> bool:
    """Whether values can be looked at for nothing; elsewhere the program would wait for the device."""
    return x.device.type == "cpu"


def _inverse(lower: Tensor) -> Tensor:
    """(I - lower)^-1 for strictly lower triangular matrices, row-major: left to itself torch returns columns first."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    out = torch.empty_like(lower, memory_format=torch.contiguous_format)
    # `unitriangular` takes the diagonal as ones without reading it.
    return torch.linalg.solve_triangular(-lower, eye, upper=False, unitriangular=True, out=out)


def _check_decay(end: Tensor, layout: _Layout) -> None:
    """`end`: each key's decay over each chunk. Raises ValueError where its inverse may overflow."""
    least, floor = float(end.amin()), FLOOR * (5 if end.dtype == torch.float64 else 1)
    if least < math.exp(floor):
        total = f"{math.log(least):.1f}" if least else f"less than {math.log(torch.finfo(end.dtype).tiny):.0f}"
        raise ValueError(
            f"log_w sums to {total} over {layout.size} steps, but the chunked backend multiplies decays out and takes "
            f"{floor} at most (log_w >= {floor / CHUNK:g} is always right): use backend='reference', or 'native' "
            "on a CPU; to empty the state use reset"
        )


def _read(c: _Chunks, n: int, state: Tensor, reads: Tensor, removed: Tensor) -> None:
    """Add to `removed` what chunk n's steps remove from the state it starts with."""
    if c.guard is None:
        removed.baddbmm_(reads, state.mT)
    else:
        removed += c.guard.block(reads @ state.mT, c.guard.first[n])


def _pass_on(c: _Chunks, n: int, state: Tensor, removed: Tensor, out: Tensor) -> None:
    """The state after chunk n into `out`."""
    size = c.v.shape[2]
    torch.mul(state, c.pass_on[n], out=out)
    if c.guard is not None:
        c.guard.block(out, c.guard.whole[n])
        removed = c.guard.block(removed.clone(), c.guard.last[n])
    out.baddbmm_(c.v[n].mT, c.keys_out[n, :, :size])
    out.baddbmm_(removed.mT, c.keys_out[n, :, size:])


def _outputs(c: _Chunks, scores: Tensor, removed: Tensor, reads: Tensor, states: Tensor | None) -> Tensor:
    """Y; `states` only if there are some to read. With a guard, `removed` is without what the states add to it."""
    size = c.v.shape[2]
    y = scores[:, :, :size] @ torch.cat((c.v, removed), dim=2)
    if states is None:
        return y
    if c.guard is None:
        return y.add_(c.queries_in[:, :, :size] @ states.mT)
    # The state's way through `removed` joined to its direct one, so that rows behind a reset never meet it.
    through = c.queries_in[:, :, :size] + scores[:, :, :size, size:] @ reads
    return y.add_(c.guard.block(through @ states.mT, c.guard.first))


def _forward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    want_state: bool,
    want_saved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, final state, and what the backward needs: chunk-start states, U, inverse (empty if not wanted)."""
    layout = _Layout.of(r)
    c = _prepare(layout, r, log_w, k, v, a, b, reset)
    size, rows = layout.size, layout.batch * layout.heads
    if _can_look(log_w):
        _check_decay(c.up[:, :, -1], layout)
    scores = c.causal(c.queries @ c.keys.mT)
    inverse = _inverse(scores[:, :, size:, size:])
    removed = inverse @ (scores[:, :, size:, :size] @ c.v)
    reads = inverse @ c.queries_in[:, :, size:]

    has_state = state is not None
    dim_v, dim_k = c.v.shape[-1], c.queries.shape[-1]
    states = c.v.new_empty(layout.chunks, rows, dim_v, dim_k)
    states[0] = state.reshape(rows, dim_v, dim_k) if state is not None else 0.0
    final = c.v.new_empty((rows, dim_v, dim_k) if want_state else (0,))
    own = removed if c.guard is None else removed.clone()  # without what the incoming states add
    for n in range(layout.chunks):
        if n or has_state:
            _read(c, n, states[n], reads[n], removed[n])
        if n + 1 < layout.chunks or want_state:
            _pass_on(c, n, states[n], removed[n], states[n + 1] if n + 1 < layout.chunks else final)

    y = _outputs(c, scores, own, reads, states if layout.chunks > 1 or has_state else None)
    y = layout.join(y, r.dtype)
    if want_state:
        final = final.reshape(layout.batch, layout.heads, dim_v, dim_k)
    if not want_saved:
        return y, final, states.new_empty(0), states.new_empty(0), states.new_empty(0)
    return y, final, states, removed, inverse


def _backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    reset: Tensor | None,
    states: Tensor,
    removed: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, log_w, k, v, a, b and the initial state."""
    layout = _Layout.of(r)
    c = _prepare(layout, r, log_w, k, v, a, b, reset)
    size = layout.size
    scores = c.causal(c.queries @ c.keys.mT)
    dy_cut = torch.zeros_like(c.v) if dy is None else layout.cut(dy, c.v.dtype)

    # The chunks backwards: dz is the gradient of the triangular system's right-hand side.
    dz = inverse.mT @ (scores[:, :, :size, size:].mT @ dy_cut)
    dz_state = inverse.mT @ c.keys_out[:, :, size:]
    dstates = c.v.new_empty(layout.chunks + 1, *states.shape[1:])
    dstates[-1] = 0.0 if dfinal is None else dfinal.reshape(states.shape[1:])
    for n in reversed(range(layout.chunks)):
        dz[n].baddbmm_(dz_state[n], dstates[n + 1].mT)
        before = torch.mul(dstates[n + 1], c.pass_on[n], out=dstates[n])
        before.baddbmm_(dy_cut[n].mT, c.queries_in[n, :, :size])
        before.baddbmm_(dz[n].mT, c.queries_in[n, :, size:])
    dnext = dstates[1:]

    douts, values = torch.cat((dy_cut, dz), dim=2), torch.cat((c.v, removed), dim=2)
    dv = scores[:, :, :, :size].mT @ douts
    dv += c.keys_out[:, :, :size] @ dnext.mT
    dscores = c.causal(douts @ values.mT)
    dqueries, dkeys_out, dpass_on = douts @ states, values @ dnext, (states * dnext).sum(2, keepdim=True)
    if c.guard is not None:
        c.guard.block(dqueries, c.guard.first.repeat(1, 1, 2, 1))
        c.guard.block(dkeys_out, c.guard.last.repeat(1, 1, 2, 1))
        c.guard.block(dpass_on, c.guard.whole)
    elif c.reads is not None:
        dqueries *= c.reads
    dqueries += dscores @ c.keys
    at_end = (c.keys_out * dkeys_out).sum(2, keepdim=True) + c.pass_on * dpass_on
    dkeys = (dscores.mT @ c.queries).addcmul_(dkeys_out, c.to_end)

    # Decay: x e^G contributes x dx to dG, and so on; dG_t reaches every log_w_s with s <= t.
    at_queries, at_keys = dqueries * c.queries, dkeys * c.keys
    at_e = at_queries[:, :, size:]
    at_g = at_queries[:, :, :size].sub_(at_keys[:, :, :size]).sub_(at_keys[:, :, size:]).add_(at_e)
    dlog_w = at_g.flip(2).cumsum(2).flip(2).sub_(at_e).add_(at_end)
    dr, da = dqueries[:, :, :size].mul_(c.up), dqueries[:, :, size:].mul_(c.up_before)
    dk, db = dkeys[:, :, :size].mul_(c.down), dkeys[:, :, size:].mul_(c.down)

    inputs = (r, log_w, k, v, a, b)
    cut = (dr, dlog_w, dk, dv, da, db)
    grads = [layout.join(g, x.dtype) for g, x in zip(cut, inputs, strict=True)]
    if reset is not None:  # a decay with nothing before it: exactly 0, where the sum above leaves rounding
        grads[1].masked_fill_(reset[:, :, None, None], 0.0)
    shape = (layout.batch, layout.heads, c.v.shape[-1], c.queries.shape[-1])
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], dstates[0].reshape(shape).clone()


@torch.library.custom_op("greylag::wkv7_chunked", mutates_args=())
def _op(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    want_state: bool,
    want_saved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (r, log_w, k, v, a, b)
    with without_autocast(r.device):
        y, final, *saved = _forward(*inputs, state, reset, want_state, want_saved)
        if reset is not None and _can_look(r):
            for row in spoilt_rows(y):  # every state is read by its y
                y[row : row + 1], last = forward_row(_forward, row, inputs, state, reset)
                if want_state:
                    final[row : row + 1] = last
    return y, final, saved[0], saved[1], saved[2]


@torch.library.register_fake("greylag::wkv7_chunked")
def _(r, log_w, k, v, a, b, state, reset, want_state, want_saved):
    layout = _Layout.of(r)
    dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    dim_k, dim_v, rows = r.shape[-1], v.shape[-1], layout.batch * layout.heads

    def empty(*shape: int) -> Tensor:
        return r.new_empty(shape, dtype=dtype)

    y = torch.empty(v.shape, dtype=r.dtype, device=v.device)
    final = empty(layout.batch, layout.heads, dim_v, dim_k) if want_state else empty(0)
    if not want_saved:
        return y, final, empty(0), empty(0), empty(0)
    cut = (layout.chunks, rows)
    return (
        y, final, empty(*cut, dim_v, dim_k), empty(*cut, layout.size, dim_v), empty(*cut, layout.size, layout.size),
    )  # fmt: skip


@torch.library.custom_op("greylag::wkv7_chunked_backward", mutates_args=())
def _op_backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    reset: Tensor | None,
    states: Tensor,
    removed: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (r, log_w, k, v, a, b)
    with without_autocast(r.device):
        grads = _backward(dy, dfinal, *inputs, reset, states, removed, inverse)
        if reset is not None and _can_look(r):
            state = states[0].reshape(grads[6].shape)
            for row in spoilt_rows(*grads):
                mended = backward_row(_forward, _backward, row, dy, dfinal, inputs, state, reset)
                for grad, part in zip(grads, mended, strict=True):
                    grad[row : row + 1] = part
    return grads


@torch.library.register_fake("greylag::wkv7_chunked_backward")
def _(dy, dfinal, r, log_w, k, v, a, b, reset, states, removed, inverse):
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (r, log_w, k, v, a, b)]
    batch, _, heads, dim_k = r.shape
    return (*grads, states.new_empty(batch, heads, v.shape[-1], dim_k))


register("wkv7_chunked")


def wkv7_chunked(
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
    """The chunk form as a custom op; shapes as :func:`core.wkv.wkv7`, state already (B, H, V, K).

    Raises:
        ValueError: on a CPU, a key's log_w that sums to less than FLOOR (float64: 5 FLOOR) over a chunk. Elsewhere
            nothing looks, and y turns to NaN where e^-G overflows.
    """
    saved = needs_gradients(r, log_w, k, v, a, b, state)
    y, final, *_ = torch.ops.greylag.wkv7_chunked(r, log_w, k, v, a, b, state, reset, return_state, saved)
    return y, final if return_state else None
