"""The Triton kernels of WKV-7's chunk form; ``docs/wkv7.md`` derives the formulas and says which kernel does what.

Four kernels. `invert` and `gradients` take every chunk at once; `walk` and `walk_back` carry the state, and its
gradient, from chunk to chunk, one program per batch row, head and tile of the value dimension. Names follow the
documentation: a trailing underscore marks what is scaled to the chunk's start (r_ = r e^G), P is a chunk's first
state and D the gradient of its last one, both as (K, V).

Every index that is multiplied by a stride is int64. Only the last dimension of a tensor has to be dense. Heads
from `forward_heads` on are walked from the sequence's end: their n-th step is time T - 1 - n. Head h of the H reads
head h % sources of the inputs, so that two directions can share their heads' inputs.
"""

# What follows looks like Python, but is Triton's language, which types by other rules.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportConstantRedefinition=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

# How products are formed (PRECISION): from operands rounded to "bf16", or from float32 by "tf32", "tf32x3" or "ieee".


@triton.jit
def _operand(x, PRECISION: tl.constexpr):
    """x as a product reads it."""
    if PRECISION == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x.to(tl.float32)


@triton.jit
def _rounded(x, PRECISION: tl.constexpr):
    """The float32 numbers that a product makes of x."""
    return _operand(x, PRECISION).to(tl.float32)


@triton.jit
def _dot(x, y, PRECISION: tl.constexpr):
    """x y, summed in float32."""
    x, y = _operand(x, PRECISION), _operand(y, PRECISION)
    if PRECISION == "bf16":
        return tl.dot(x, y)
    else:
        return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def _steps(n, T, backward, C: tl.constexpr):
    """The times (int64) that chunk n walks over, and which of its steps exist."""
    step = n * C + tl.arange(0, C)
    return tl.where(backward, T - 1 - step, step).to(tl.int64), step < T


@triton.jit
def _offsets(strides, row, head, t, columns):
    """Where (row, t, head, columns) lies in a tensor (B, T, H, D) of these strides and a dense last dimension."""
    return row * strides[0] + head * strides[2] + t[:, None] * strides[1] + columns[None, :]


@triton.jit
def _load(x, strides, row, head, t, live, columns, D: tl.constexpr):
    """One chunk's rows in float32, zeros where nothing is: zeros are neutral steps."""
    mask = live[:, None] & (columns < D)[None, :]
    return tl.load(x + _offsets(strides, row, head, t, columns), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(x, strides, row, head, t, live, columns, D: tl.constexpr, value):
    mask = live[:, None] & (columns < D)[None, :]
    tl.store(x + _offsets(strides, row, head, t, columns), value, mask=mask)


@triton.jit
def _state_mask(keys, values, K: tl.constexpr, V: tl.constexpr):
    return (keys < K)[:, None] & (values < V)[None, :]


@triton.jit
def _chunk_state(keys, values, index, K: tl.constexpr, V: tl.constexpr):
    """Offsets of chunk `index` in states (chunks, K, V)."""
    return index * (K * V) + keys[:, None] * V + values[None, :]


@triton.jit
def _final_state(keys, values, index, K: tl.constexpr, V: tl.constexpr):
    """Offsets of one state of (..., V, K), seen as (K, V)."""
    return index * (K * V) + values[None, :] * K + keys[:, None]


@triton.jit
def _marks(reset, strides, row, t, live, T, backward):
    """1 where the state is emptied before a step: walking back, at the mark of the step after, and at the row's end."""
    at = tl.where(backward, t + 1, t)
    mark = tl.load(reset + row * strides[0] + at * strides[1], mask=live & (at < T), other=0)
    return tl.where(live & (at >= T), 1, mark.to(tl.int32))


@triton.jit
def _earlier(segment, C: tl.constexpr, STRICT: tl.constexpr, HAS_RESET: tl.constexpr):
    """Which steps (columns) a step (rows) can see within the chunk."""
    i = tl.arange(0, C)
    if STRICT:
        seen = i[:, None] > i[None, :]
    else:
        seen = i[:, None] >= i[None, :]
    if HAS_RESET:
        seen = seen & (segment[:, None] == segment[None, :])
    return seen


@triton.jit
def _unit_inverse(lower, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I - lower)^-1 of a strictly lower triangular matrix, from diagonal blocks of 2 to blocks twice as large.

    Of two neighbours' inverses X, Y and the block L below them, the lower left block of the larger inverse is Y L X.
    Powers of `lower`, the other way, cancel: with one key all the time they grow like binomial coefficients.
    """
    i = tl.arange(0, C)
    j = i[None, :]
    i = i[:, None]
    x = tl.where(i == j, 1.0, 0.0) + tl.where(i // 2 == j // 2, lower, 0.0)
    for level in tl.static_range(1, 6):
        if 2**level < C:
            below = (i // 2**level == j // 2**level + 1) & (i // 2 ** (level + 1) == j // 2 ** (level + 1))
            x += _dot(_dot(x, tl.where(below, lower, 0.0), PRECISION), x, PRECISION)
    return x


@triton.jit
def invert(
    inputs, strides, reset, reset_strides, inverse, T, H, sources, chunks, forward_heads,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, HAS_RESET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(I - A_ab)^-1 of every chunk, (B, H, chunks, C, C). A program: one chunk of one head."""
    program = tl.program_id(0).to(tl.int64)
    n = program % chunks
    head, row = (program // chunks) % H, program // chunks // H
    source = head % sources
    backward = head >= forward_heads
    t, live = _steps(n, T, backward, C)
    keys = tl.arange(0, BK)
    segment = t
    if HAS_RESET:
        segment = tl.cumsum(_marks(reset, reset_strides, row, t, live, T, backward), 0)
    g = _load(inputs[1], strides[1], row, source, t, live, keys, K)
    total = tl.cumsum(g, 0)
    a_ = _load(inputs[4], strides[4], row, source, t, live, keys, K) * tl.exp(total - g)
    b_ = _load(inputs[5], strides[5], row, source, t, live, keys, K) * tl.exp(-total)
    # The inverse of a rounded matrix is not the rounded inverse: here bfloat16 inputs take tf32 operands.
    WIDE: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    lower = tl.where(_earlier(segment, C, True, HAS_RESET), _dot(a_, tl.trans(b_), WIDE), 0.0)
    i = tl.arange(0, C)
    at = program * (C * C) + i[:, None] * C + i[None, :]
    tl.store(inverse + at, _unit_inverse(lower, C, WIDE))


@triton.jit
def walk(
    inputs, strides, reset, reset_strides, state, state_strides, inverse, y, y_strides, final, states,
    T, H, sources, chunks, forward_heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_STATE: tl.constexpr, HAS_RESET: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr,
    SAVES: tl.constexpr, WANT_STATE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y, the final state and the states at chunk starts. A program: one head of one row, BV of its values.

    READS: a state can be other than zero at a chunk's start; WRITES: the state after the chunk is wanted.
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    index = tl.program_id(0).to(tl.int64) // tiles
    values = (tl.program_id(0) % tiles) * BV + tl.arange(0, BV)
    keys = tl.arange(0, BK)
    head, row = index % H, index // H
    source = head % sources
    backward = head >= forward_heads
    whole = _state_mask(keys, values, K, V)
    square = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    P = tl.zeros((BK, BV), tl.float32)
    if HAS_STATE:
        at = row * state_strides[0] + head * state_strides[1]
        at += values[None, :].to(tl.int64) * state_strides[2] + keys[:, None]
        P = tl.load(state + at, mask=whole, other=0.0).to(tl.float32)

    for n in tl.range(0, chunks, num_stages=STAGES):
        t, live = _steps(n, T, backward, C)
        chunk = index * chunks + n
        g = _load(inputs[1], strides[1], row, source, t, live, keys, K)
        r = _load(inputs[0], strides[0], row, source, t, live, keys, K)
        k = _load(inputs[2], strides[2], row, source, t, live, keys, K)
        v = _load(inputs[3], strides[3], row, source, t, live, values, V)
        a = _load(inputs[4], strides[4], row, source, t, live, keys, K)
        b = _load(inputs[5], strides[5], row, source, t, live, keys, K)
        x = tl.load(inverse + chunk * (C * C) + square)
        segment = t
        if HAS_RESET:
            segment = tl.cumsum(_marks(reset, reset_strides, row, t, live, T, backward), 0)
        total = tl.cumsum(g, 0)
        r_, a_ = r * tl.exp(total), a * tl.exp(total - g)
        k_, b_ = k * tl.exp(-total), b * tl.exp(-total)
        upto, before = _earlier(segment, C, False, HAS_RESET), _earlier(segment, C, True, HAS_RESET)

        a_k = tl.where(before, _dot(a_, tl.trans(k_), PRECISION), 0.0)
        r_k = tl.where(upto, _dot(r_, tl.trans(k_), PRECISION), 0.0)
        r_b = tl.where(upto, _dot(r_, tl.trans(b_), PRECISION), 0.0)
        u = _dot(x, _dot(a_k, v, PRECISION), PRECISION)
        out = _dot(r_k, v, PRECISION)
        if READS:
            if SAVES:
                tl.store(states + _chunk_state(keys, values, chunk, K, V), P, mask=whole)
            u_state = _dot(_dot(x, a_, PRECISION), P, PRECISION)  # in this order the state passes two products only
            out_state = _dot(r_, P, PRECISION)
            if HAS_RESET:  # chosen, not multiplied by 0, so that a state that is not finite ends at a reset
                first = (segment == 0)[:, None]
                u_state = tl.where(first, u_state, 0.0)
                out += tl.where(first, out_state + _dot(r_b, u_state, PRECISION), 0.0) + _dot(r_b, u, PRECISION)
                u += u_state
            else:
                u += u_state
                out += out_state + _dot(r_b, u, PRECISION)
        else:
            out += _dot(r_b, u, PRECISION)
        _store(y, y_strides, row, head, t, live, values, V, out)
        if WRITES:
            end = tl.exp(tl.sum(g, 0))
            k_end, b_end = k_ * end[None, :], b_ * end[None, :]
            P = P * end[:, None]
            if HAS_RESET:
                last = tl.max(segment, 0)
                kept = (segment == last)[:, None]
                u, v = tl.where(kept, u, 0.0), tl.where(kept, v, 0.0)
                P = tl.where(last == 0, P, 0.0)
            P += _dot(tl.trans(k_end), v, PRECISION)
            P += _dot(tl.trans(b_end), u, PRECISION)
    if WANT_STATE:
        tl.store(final + _final_state(keys, values, index, K, V), P, mask=whole)


@triton.jit
def walk_back(
    inputs, strides, reset, reset_strides, inverse, dy, dy_strides, dfinal, dstates, dstate,
    T, H, sources, chunks, forward_heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_DY: tl.constexpr, HAS_DFINAL: tl.constexpr, HAS_RESET: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of the states at chunk ends and of the first state. Programs as in `walk`."""
    tiles: tl.constexpr = (V + BV - 1) // BV
    index = tl.program_id(0).to(tl.int64) // tiles
    values = (tl.program_id(0) % tiles) * BV + tl.arange(0, BV)
    keys = tl.arange(0, BK)
    head, row = index % H, index // H
    source = head % sources
    backward = head >= forward_heads
    whole = _state_mask(keys, values, K, V)
    square = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    D = tl.zeros((BK, BV), tl.float32)
    if HAS_DFINAL:
        D = tl.load(dfinal + _final_state(keys, values, index, K, V), mask=whole, other=0.0).to(tl.float32)

    for done in tl.range(0, chunks, num_stages=STAGES):
        n = chunks - 1 - done
        t, live = _steps(n, T, backward, C)
        chunk = index * chunks + n
        tl.store(dstates + _chunk_state(keys, values, chunk, K, V), D, mask=whole)
        g = _load(inputs[1], strides[1], row, source, t, live, keys, K)
        a = _load(inputs[4], strides[4], row, source, t, live, keys, K)
        b = _load(inputs[5], strides[5], row, source, t, live, keys, K)
        x = tl.load(inverse + chunk * (C * C) + square)
        segment = t
        if HAS_RESET:
            segment = tl.cumsum(_marks(reset, reset_strides, row, t, live, T, backward), 0)
        total = tl.cumsum(g, 0)
        end = tl.exp(tl.sum(g, 0))
        a_, b_ = a * tl.exp(total - g), b * tl.exp(-total)
        b_end = b_ * end[None, :]
        if HAS_RESET:
            last = tl.max(segment, 0)
            b_end = tl.where((segment == last)[:, None], b_end, 0.0)
            a_ = tl.where((segment == 0)[:, None], a_, 0.0)
            end = tl.where(last == 0, end, 0.0)
        dz = _dot(_dot(tl.trans(x), b_end, PRECISION), D, PRECISION)
        D = D * end[:, None]
        if HAS_DY:
            r_ = _load(inputs[0], strides[0], row, source, t, live, keys, K) * tl.exp(total)
            out = _load(dy, dy_strides, row, head, t, live, values, V)
            upto = _earlier(segment, C, False, HAS_RESET)
            r_b = tl.where(upto, _dot(r_, tl.trans(b_), PRECISION), 0.0)
            dz += _dot(tl.trans(x), _dot(tl.trans(r_b), out, PRECISION), PRECISION)
            if HAS_RESET:
                r_ = tl.where((segment == 0)[:, None], r_, 0.0)
            D += _dot(tl.trans(r_), out, PRECISION)
        D += _dot(tl.trans(a_), dz, PRECISION)
    tl.store(dstate + _final_state(keys, values, index, K, V), D, mask=whole)


@triton.jit
def gradients(
    inputs, strides, reset, reset_strides, inverse, states, dstates, dy, dy_strides, grads, grad_strides,
    T, H, sources, chunks, forward_heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    HAS_DY: tl.constexpr, HAS_RESET: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of r, log_w, k, v, a, b. A program: one chunk of one head, all its values tile by tile."""
    program = tl.program_id(0).to(tl.int64)
    n = program % chunks
    head, row = (program // chunks) % H, program // chunks // H
    source = head % sources
    backward = head >= forward_heads
    t, live = _steps(n, T, backward, C)
    keys = tl.arange(0, BK)
    segment, marks = t, t
    if HAS_RESET:
        marks = _marks(reset, reset_strides, row, t, live, T, backward)
        segment = tl.cumsum(marks, 0)
    upto, before = _earlier(segment, C, False, HAS_RESET), _earlier(segment, C, True, HAS_RESET)
    x = tl.load(inverse + program * (C * C) + tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :])
    g = _load(inputs[1], strides[1], row, source, t, live, keys, K)
    total = tl.cumsum(g, 0)
    end = tl.exp(tl.sum(g, 0))
    # Rounded once, and these very numbers also meet their gradients below: what two steps owe to each other then
    # cancels in the decay's sums as exactly as float32 adds.
    r_ = _rounded(_load(inputs[0], strides[0], row, source, t, live, keys, K) * tl.exp(total), PRECISION)
    k_ = _rounded(_load(inputs[2], strides[2], row, source, t, live, keys, K) * tl.exp(-total), PRECISION)
    a_ = _rounded(_load(inputs[4], strides[4], row, source, t, live, keys, K) * tl.exp(total - g), PRECISION)
    b_ = _rounded(_load(inputs[5], strides[5], row, source, t, live, keys, K) * tl.exp(-total), PRECISION)
    first, kept, passed = 1.0, 1.0, end
    if HAS_RESET:
        last = tl.max(segment, 0)
        first = (segment == 0).to(tl.float32)[:, None]
        kept = (segment == last).to(tl.float32)[:, None]
        passed = tl.where(last == 0, end, 0.0)
    to_end = end[None, :] * kept
    a_k = tl.where(before, _dot(a_, tl.trans(k_), PRECISION), 0.0)
    r_k = tl.where(upto, _dot(r_, tl.trans(k_), PRECISION), 0.0)
    r_b = tl.where(upto, _dot(r_, tl.trans(b_), PRECISION), 0.0)

    dr_, dk_ = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    da_, db_ = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    dr_k, dr_b = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    da_k, da_b = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    through = tl.zeros((BK,), tl.float32)
    for tile in range((V + BV - 1) // BV):
        values = tile * BV + tl.arange(0, BV)
        whole = _state_mask(keys, values, K, V)
        v = _load(inputs[3], strides[3], row, source, t, live, values, V)
        z = _dot(a_k, v, PRECISION)
        du, dv = tl.zeros((C, BV), tl.float32), tl.zeros((C, BV), tl.float32)
        out = tl.zeros((C, BV), tl.float32)
        P = tl.zeros((BK, BV), tl.float32)
        if READS:
            P = tl.load(states + _chunk_state(keys, values, program, K, V), mask=whole, other=0.0)
            z += _dot(a_ * first, P, PRECISION)
        u = _dot(x, z, PRECISION)
        if HAS_DY:
            out = _load(dy, dy_strides, row, head, t, live, values, V)
            du += _dot(tl.trans(r_b), out, PRECISION)
            dv += _dot(tl.trans(r_k), out, PRECISION)
            dr_k += _dot(out, tl.trans(v), PRECISION)
            dr_b += _dot(out, tl.trans(u), PRECISION)
        if WRITES:
            D = tl.load(dstates + _chunk_state(keys, values, program, K, V), mask=whole, other=0.0)
            du += _dot(b_ * to_end, D, PRECISION)
            dv += _dot(k_ * to_end, D, PRECISION)
            dk_ += _dot(v, tl.trans(D), PRECISION)
            db_ += _dot(u, tl.trans(D), PRECISION)
            if READS:
                through += tl.sum(P.to(tl.float32) * D.to(tl.float32), 1)
        dz = _dot(tl.trans(x), du, PRECISION)
        dv += _dot(tl.trans(a_k), dz, PRECISION)
        da_k += _dot(dz, tl.trans(v), PRECISION)
        da_b += _dot(dz, tl.trans(u), PRECISION)
        if READS:
            da_ += _dot(dz, tl.trans(P), PRECISION)
            if HAS_DY:
                dr_ += _dot(out, tl.trans(P), PRECISION)
        _store(grads[3], grad_strides[3], row, head, t, live, values, V, dv)

    dr_k, dr_b = tl.where(upto, dr_k, 0.0), tl.where(upto, dr_b, 0.0)
    da_k, da_b = tl.where(before, da_k, 0.0), tl.where(before, da_b, 0.0)
    at_end = passed * through + tl.sum((k_ * dk_ + b_ * db_) * to_end, 0)
    dr_ = dr_ * first + _dot(dr_k, k_, PRECISION) + _dot(dr_b, b_, PRECISION)
    da_ = da_ * first + _dot(da_k, k_, PRECISION) + _dot(da_b, b_, PRECISION)
    dk_ = dk_ * to_end + _dot(tl.trans(dr_k), r_, PRECISION) + _dot(tl.trans(da_k), a_, PRECISION)
    db_ = db_ * to_end + _dot(tl.trans(dr_b), r_, PRECISION) + _dot(tl.trans(da_b), a_, PRECISION)
    _store(grads[0], grad_strides[0], row, head, t, live, keys, K, dr_ * tl.exp(total))
    _store(grads[2], grad_strides[2], row, head, t, live, keys, K, dk_ * tl.exp(-total))
    _store(grads[4], grad_strides[4], row, head, t, live, keys, K, da_ * tl.exp(total - g))
    _store(grads[5], grad_strides[5], row, head, t, live, keys, K, db_ * tl.exp(-total))
    at_a = a_ * da_
    at_g = r_ * dr_ - k_ * dk_ - b_ * db_ + at_a
    dg = tl.cumsum(at_g, 0, reverse=True) - at_a + at_end[None, :]
    if HAS_RESET:  # a decay with nothing before it: exactly 0, where the sums leave rounding
        dg = tl.where((marks == 1)[:, None], 0.0, dg)
    _store(grads[1], grad_strides[1], row, head, t, live, keys, K, dg)
