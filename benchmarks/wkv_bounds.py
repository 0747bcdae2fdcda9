"""How near the operator comes to what the machine allows: its arithmetic rate, both directions, attention, memory."""

from __future__ import annotations

import functools
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Table, side_by_side
from core.wkv import wkv7
from core.wkv.build import BLOCK
from core.wkv.walk import Walk

SGEMM = 2048  # size of the square product whose rate is the measure
Inputs = tuple[Tensor, ...]


def forward_flops(dim_k: int, dim_v: int) -> int:
    """Per token and head, by the recurrence as written: decay K V, removal and read-out 2 K V each, two updates."""
    return 9 * dim_k * dim_v


def both_flops(dim_k: int, dim_v: int) -> int:
    """Forward and backward per token and head as `native` computes them, see docs/wkv7.md (two per multiply-add)."""
    return 2 * (12 * dim_k * dim_v + BLOCK * (12 * dim_k + 7 * dim_v))


def _differentiated(run: Callable[..., Any], inputs: Inputs, dy: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(run(*leaves)[0], leaves, dy)


def _undifferentiated(run: Callable[..., Any], inputs: Inputs) -> Any:
    with torch.no_grad():
        return run(*inputs)


def rates(title: str, inputs: Inputs, dy: Tensor, backends: list[str], turns: int) -> Table:
    """Each backend's rate beside that of torch's own float32 product, timed in the same turns."""
    tokens = inputs[0].shape[:3].numel()
    dim_k, dim_v = inputs[0].shape[-1], inputs[3].shape[-1]
    one, other = torch.randn(SGEMM, SGEMM), torch.randn(SGEMM, SGEMM)
    flops = {f"torch {SGEMM} x {SGEMM} x {SGEMM}": 2 * SGEMM**3}
    calls: dict[str, Callable[[], object]] = {next(iter(flops)): functools.partial(torch.mm, one, other)}
    for name in backends:
        run = functools.partial(wkv7, return_state=False, backend=name)
        flops[f"{name} forward"] = tokens * forward_flops(dim_k, dim_v)
        calls[f"{name} forward"] = functools.partial(_undifferentiated, run, inputs)
        if name == "native":  # the others' operations were not counted
            flops[f"{name} forward+backward"] = tokens * both_flops(dim_k, dim_v)
            calls[f"{name} forward+backward"] = functools.partial(_differentiated, run, inputs, dy)
    timings = side_by_side(calls, turns, 0.05)
    rate = {name: flops[name] / timing.median / 1e9 for name, timing in timings.items()}
    base = next(iter(rate.values()))
    table = Table(f"{title}: rate", ["what", "time", "GFLOP/s", "of the product's rate"])
    for name, timing in timings.items():
        table.add(name, timing, rate[name], rate[name] / base)
    return table


def directions(title: str, inputs: Inputs, dy: Tensor, backends: list[str], turns: int) -> Table:
    """Both directions by one call, and by two calls between which sequences are turned round."""
    walk = Walk(("forward", "backward"))

    def turned(*x: Tensor, backend: str) -> tuple[Tensor, None]:
        r, log_w, k, v, a, b = x
        forth = wkv7(r, log_w, k, v, a, b, return_state=False, backend=backend)[0]
        r, log_w, k, v, a, b = (part.flip(1) for part in x)
        back = wkv7(r, log_w, k, v, a, b, return_state=False, backend=backend)[0]
        return (forth + back.flip(1)) / 2, None

    runs: dict[str, Callable[..., Any]] = {}
    for name in backends:
        runs[f"{name}, one call"] = functools.partial(wkv7, walk=walk, return_state=False, backend=name)
        runs[f"{name}, two calls and flips"] = functools.partial(turned, backend=name)
    wanted = next(iter(runs.values()))(*inputs)[0]
    for run in runs.values():
        torch.testing.assert_close(run(*inputs)[0], wanted, rtol=1e-4, atol=1e-4)
    return _times(f"{title}: both directions", "how", runs, inputs, dy, turns)


def attention(inputs: Inputs, dy: Tensor, backends: list[str], turns: int) -> Table:
    """Causal softmax attention (PyTorch's SDPA) over the same heads and widths: another function, the same place."""

    def sdpa(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, None]:
        q, key, value = (x.transpose(1, 2) for x in (r, k, v))
        y = F.scaled_dot_product_attention(q, key, value, is_causal=True).transpose(1, 2)
        return y + 0.0 * (log_w.sum() + a.sum() + b.sum()), None  # so that every input has a gradient, as ours

    runs: dict[str, Callable[..., Any]] = {"torch SDPA, causal": sdpa}
    runs |= {f"greylag {name}": functools.partial(wkv7, return_state=False, backend=name) for name in backends}
    return _times(f"Beside attention, T={inputs[0].shape[1]}", "what", runs, inputs, dy, turns)


def _times(
    title: str, what: str, runs: Mapping[str, Callable[..., Any]], inputs: Inputs, dy: Tensor, turns: int
) -> Table:
    forward = side_by_side({n: functools.partial(_undifferentiated, run, inputs) for n, run in runs.items()}, turns)
    both = side_by_side({n: functools.partial(_differentiated, run, inputs, dy) for n, run in runs.items()}, turns)
    table = Table(title, [what, "forward", "forward+backward"])
    for name in runs:
        table.add(name, forward[name], both[name])
    return table


def memory(steps: int, heads: int, dim_k: int, dim_v: int, backends: list[str]) -> Table:
    """Peak memory of forward+backward, each backend in a process of its own."""
    table = Table(
        f"Peak memory, B=1 T={steps} H={heads} K={dim_k} V={dim_v}",
        ["backend", "inputs + output + gradients, MiB", "peak, MiB", "times that"],
    )
    for name in backends:
        command = [sys.executable, "-m", "benchmarks.wkv_bounds", name, *map(str, (steps, heads, dim_k, dim_v))]
        needed, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        table.add(name, needed / 2**20, peak / 2**20, peak / needed)
    return table


def _peak(backend: str, steps: int, heads: int, dim_k: int, dim_v: int) -> tuple[int, int]:
    """Bytes of inputs, output and gradients, and by how much the process grew at most; dy counts as growth."""

    def make(steps: int) -> tuple[Inputs, Tensor]:
        keys, values = (1, steps, heads, dim_k), (1, steps, heads, dim_v)
        a = F.normalize(torch.randn(keys), dim=-1)
        v = torch.randn(values)
        return (torch.randn(keys), torch.rand(keys).mul_(-0.6), torch.randn(keys), v, a, a * -0.5), torch.ones(values)

    run = functools.partial(wkv7, return_state=False, backend=backend)
    inputs, dy = make(64)
    _differentiated(run, inputs, dy)  # everything that is loaded once
    before = _grown()
    inputs, dy = make(steps)
    gradients = _differentiated(run, inputs, dy)
    needed = sum(x.nbytes for x in (*inputs, dy, *gradients))  # y is as large as dy
    return needed, _grown() - before


def _grown() -> int:
    """Bytes of memory this process has used at most, of its own: getrusage's peak is inherited from the parent."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux: what the parent used hides a smaller peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024  # pyright: ignore[reportOptionalSubscript]


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], *map(int, sys.argv[2:]))))
