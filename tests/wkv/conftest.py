"""The truth about WKV-7 that the operator's tests share: the recurrence and its gradients in numpy, float64.

Written from the equations alone (arXiv 2503.14456, section 4), with no torch, no autograd and no code of
`core.wkv`, so that it errs independently:

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t' + v_t k_t',    y_t = S_t r_t,    w_t = exp(log_w_t)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Wkv = Callable[..., tuple[Tensor, Tensor | None]]

NAMES = ("r", "log_w", "k", "v", "a", "b")
FLOOR = -math.exp(-0.5)  # the natural logarithm of RWKV-7's smallest decay


@pytest.fixture(autouse=True)
def _native_needs_a_compiler(request: pytest.FixtureRequest) -> None:
    """Tests of the native kernel skip, with its own reason, where it cannot be compiled."""
    wanted = getattr(request.node, "callspec", None)
    if "native" in request.node.name and wanted is not None and wanted.params.get("backend", "native") == "native":
        from core.wkv import available_backends

        if reason := available_backends()["native"]:
            pytest.skip(reason)


def _outer(x: Array, y: Array) -> Array:
    return x[..., :, None] * y[..., None, :]


def _apply(matrix: Array, x: Array) -> Array:
    return np.matmul(matrix, x[..., None])[..., 0]


def oracle(
    inputs: Mapping[str, Array], state: Array, reset: Array | None, dy: Array, dfinal: Array
) -> dict[str, Array]:
    """y, final state and the gradients of sum(y dy) + sum(final dfinal), step by step, forwards and backwards.

    inputs: r, log_w, k, a, b (B, T, H, K), v (B, T, H, V); state, dfinal (B, H, V, K); reset (B, T) of 0 and 1.
    """
    r, log_w, k, v, a, b = (inputs[name] for name in NAMES)
    steps, w = r.shape[1], np.exp(log_w)
    keep = np.ones(r.shape[:2]) if reset is None else 1.0 - reset
    before: list[Array] = []
    y = np.zeros_like(v)
    for t in range(steps):
        state = state * keep[:, t, None, None, None]
        before.append(state)
        removed = _apply(state, a[:, t])
        state = state * w[:, t, :, None, :] + _outer(removed, b[:, t]) + _outer(v[:, t], k[:, t])
        y[:, t] = _apply(state, r[:, t])
    grads = {f"d{name}": np.zeros_like(inputs[name]) for name in NAMES}
    final, after, ds = state, state, dfinal
    for t in reversed(range(steps)):
        start = before[t]
        grads["dr"][:, t] = _apply(after.swapaxes(-1, -2), dy[:, t])
        ds = ds + _outer(dy[:, t], r[:, t])
        into = ds.swapaxes(-1, -2)
        grads["dlog_w"][:, t] = w[:, t] * (start * ds).sum(-2)
        grads["dv"][:, t], grads["dk"][:, t] = _apply(ds, k[:, t]), _apply(into, v[:, t])
        grads["db"][:, t] = _apply(into, _apply(start, a[:, t]))
        dremoved = _apply(ds, b[:, t])
        grads["da"][:, t] = _apply(start.swapaxes(-1, -2), dremoved)
        ds = (ds * w[:, t, :, None, :] + _outer(dremoved, a[:, t])) * keep[:, t, None, None, None]
        # What step t-1 wrote is what step t starts from, unless a reset stands between them; only the product
        # with dy[t-1] needs it, so the unmasked state is made anew from the step itself.
        after = _after(inputs, w, before, t - 1) if t else after
    return {"y": y, "final": final, **grads, "dstate": ds}


def _after(inputs: Mapping[str, Array], w: Array, before: list[Array], t: int) -> Array:
    removed = _apply(before[t], inputs["a"][:, t])
    written = _outer(removed, inputs["b"][:, t]) + _outer(inputs["v"][:, t], inputs["k"][:, t])
    return before[t] * w[:, t, :, None, :] + written


@dataclass(frozen=True)
class Case:
    """One operator call with its cotangents; `truth` is the oracle's answer for exactly these (rounded) numbers."""

    inputs: dict[str, Tensor]
    state: Tensor | None
    reset: Tensor | None
    dy: Tensor
    dfinal: Tensor
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """r, log_w, k, v, a, b, in the order that wkv7 takes."""
        return tuple(self.inputs[name] for name in NAMES)

    @property
    def truth(self) -> dict[str, Array]:
        if "truth" not in self._memo:
            inputs = {name: x.double().numpy() for name, x in self.inputs.items()}
            given = self.state
            if given is None:
                given = torch.zeros_like(self.dfinal)
            state = np.broadcast_to(given.double().numpy(), tuple(self.dfinal.shape))
            reset = None if self.reset is None else self.reset.double().numpy()
            truth = oracle(inputs, state, reset, self.dy.double().numpy(), self.dfinal.double().numpy())
            if given.dim() == 3:  # one state for all rows receives the sum of their gradients
                truth["dstate"] = truth["dstate"].sum(0)
            self._memo["truth"] = truth
        return self._memo["truth"]

    def to(self, dtype: torch.dtype) -> Case:
        """The inputs and dy rounded to `dtype`, state and dfinal to what the operator keeps them in."""
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        return Case(
            {name: x.to(dtype) for name, x in self.inputs.items()},
            None if self.state is None else self.state.to(wide),
            self.reset,
            self.dy.to(dtype),
            self.dfinal.to(wide),
        )

    def change(self, **changes: Any) -> Case:
        """Another case with some fields replaced; its truth is worked out anew."""
        return replace(self, _memo={}, **changes)

    def run(self, wkv: Wkv, **options: Any) -> dict[str, Tensor]:
        """Forward and backward of `wkv(r, log_w, k, v, a, b, state, reset=...)`, under the oracle's names."""
        leaves = {name: x.detach().clone().requires_grad_() for name, x in self.inputs.items()}
        state = None if self.state is None else self.state.detach().clone().requires_grad_()
        y, final = wkv(*leaves.values(), state, reset=self.reset, **options)
        torch.autograd.backward([y, final], [self.dy, self.dfinal])
        grads = {f"d{name}": x.grad for name, x in leaves.items()}
        if state is not None:
            grads["dstate"] = state.grad
        found = {"y": y.detach(), "final": final.detach(), **grads}
        missing = [name for name, x in found.items() if x is None]
        assert not missing, f"no gradient for {missing}"
        return found


def _keys(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Unit removal keys, (B, T, H, K)."""
    batch, _, heads, dim = shape
    if kind == "one_hot":
        return torch.nn.functional.one_hot(torch.randint(dim, shape[:3], generator=draw), dim).double()
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    same = torch.randn(batch, 1, heads, dim, generator=draw, dtype=torch.float64)
    if kind in ("same_key", "mirror"):
        x = same.expand(shape)
    elif kind == "near_collinear":
        x = same + 1e-3 * x
    return torch.nn.functional.normalize(x, dim=-1)


def make_case(
    batch: int,
    steps: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    kind: str = "timemix",
    state: bool = True,
    reset: float = 0.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Inputs as RWKV-7's TimeMix makes them, or a hard kind of them; `reset` is each step's chance of one."""
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, steps, heads, key_dim)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    logit, iclr = randn(*shape), randn(*shape).sigmoid()
    if kind == "slow":
        logit = logit - 10.0
    elif kind == "mixed_decays":
        logit = logit.sign() * 10.0
    log_w = FLOOR * logit.sigmoid()
    if kind == "floor":
        log_w = torch.full_like(log_w, FLOOR)
    elif kind in ("mirror", "reflections"):  # the eigenvalue along the key is -1, and nothing ever fades
        log_w = torch.zeros_like(log_w)
    if kind in ("iclr_1", "same_key", "one_hot", "near_collinear"):
        iclr = torch.ones_like(iclr)
    elif kind in ("iclr_2", "mirror", "reflections"):
        iclr = torch.full_like(iclr, 2.0)
    kk = _keys(kind, shape, draw)
    inputs = {
        "r": randn(*shape), "log_w": log_w, "k": randn(*shape), "v": randn(batch, steps, heads, value_dim),
        "a": -kk, "b": kk * iclr,
    }  # fmt: skip
    whole = (batch, heads, value_dim, key_dim)
    marks = torch.rand(batch, steps, generator=draw) < reset if reset else None
    first = randn(*whole) if state else None
    return Case(inputs, first, marks, randn(batch, steps, heads, value_dim), randn(*whole)).to(dtype)


@pytest.fixture(scope="session")
def make() -> Callable[..., Case]:
    """`make(B, T, H, K, V, kind=..., state=True, reset=0.0, dtype=float32, seed=0)` -> Case; each made once."""
    return functools.cache(make_case)


@pytest.fixture(scope="session")
def error() -> Callable[[Any, Any], float]:
    """`error(found, truth)`: relative root mean square, RMS(found - truth) / RMS(truth); 0/0 is 0."""

    def relative_rms(found: Tensor | Array, truth: Tensor | Array) -> float:
        x, y = (z.detach().double().numpy() if isinstance(z, Tensor) else z for z in (found, truth))
        assert x.shape == y.shape, f"shape {x.shape} instead of {y.shape}"
        off, size = np.linalg.norm(x - y), np.linalg.norm(y)
        if not size:
            return 0.0 if off == 0 else math.inf
        return float(off / size)

    return relative_rms


@pytest.fixture(scope="session")
def agrees(error: Callable[[Any, Any], float]) -> Callable[..., None]:
    """`agrees(found, truth, forward, gradients)`: every result within its bound, all misses told at once."""

    def check(
        found: Mapping[str, Any], truth: Mapping[str, Any], forward: float = 2e-6, gradients: float = 5e-6
    ) -> None:
        errors = {name: error(x, truth[name]) for name, x in found.items()}
        bounds = {name: forward if name in ("y", "final") else gradients for name in errors}
        misses = {name: e for name, e in errors.items() if not e <= bounds[name]}  # NaN is a miss too
        assert not misses, f"relative RMS over {forward:g} (forward) or {gradients:g} (gradients): {misses}"

    return check
