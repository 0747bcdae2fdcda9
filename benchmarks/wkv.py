"""The WKV-7 operator beside the step loop: how much faster, at which error.

    python -m benchmarks.wkv --backend native,chunked,reference --bounds

The loop is what a PyTorch user would write from the paper: one batched matrix product per step, gradients by
autograd. flash-linear-attention's plain-torch forms of the same recurrence are the other peers on a CPU. Every
contestant's output, final state and gradients are held to the float64 recurrence first.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.report import WRONG, Report, Table, Timing, side_by_side, versions
from benchmarks.wkv_bounds import attention, directions, memory, rates
from core.wkv import available_backends, wkv7, wkv7_reference

DEFAULT_SHAPE = "1x1024x12x64x64"
SHORT = (1, 4, 16, 32)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative RMS that a contestant may be off; half precision rounds inputs' products and outputs once.
BOUNDS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (1e-2, 2e-2), torch.float16: (2e-3, 5e-3)}

SEED = 0  # of the inputs
ATTENTION_STEPS = (1024, 4096)
MEMORY_STEPS = 65536
BOUNDS_NOTES = [
    "Rates: forward by 9 K V operations per token and head, forward+backward by the operations of the native kernel as "
    "coded (docs/wkv7.md), two per multiply-add.",
    "Attention is another function, so nothing is compared with it but time.",
    "Peak memory: growth of a fresh process, the incoming gradient included.",
]

Run = Callable[..., tuple[Tensor, Tensor | None]]


class Shape(NamedTuple):
    """B x T x H x K x V."""

    batch: int
    steps: int
    heads: int
    key_dim: int
    value_dim: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        try:
            shape = cls(*(int(x) for x in text.split("x")))
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no shape: write BxTxHxKxV, such as {DEFAULT_SHAPE}"
            ) from None
        if min(shape) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no shape: all five numbers must be at least 1")
        return shape

    def __str__(self) -> str:
        return "B={} T={} H={} K={} V={}".format(*self)


class Problem(NamedTuple):
    """Inputs as TimeMix makes them (r, log_w, k, v, a, b), a state, and cotangents for y and the final state."""

    inputs: tuple[Tensor, ...]
    state: Tensor
    dy: Tensor
    dfinal: Tensor

    @classmethod
    def make(cls, shape: Shape, dtype: torch.dtype, device: str) -> Problem:
        draw = torch.Generator().manual_seed(SEED)
        batch, steps, heads, key_dim, value_dim = shape

        def randn(*size: int) -> Tensor:
            return torch.randn(size, generator=draw)

        keys, values = (batch, steps, heads, key_dim), (batch, steps, heads, value_dim)
        kk = torch.nn.functional.normalize(randn(*keys), dim=-1)
        log_w = -0.6065306597 * randn(*keys).sigmoid()
        inputs = [randn(*keys), randn(*keys), randn(*values), -kk, kk * randn(*keys).sigmoid()]
        r, k, v, a, b = (x.to(device, dtype) for x in inputs)
        state, dfinal = (randn(batch, heads, value_dim, key_dim).to(device) for _ in range(2))
        return cls((r, log_w.to(device), k, v, a, b), state, randn(*values).to(device, dtype), dfinal)

    def forward(self, run: Run) -> tuple[Tensor, ...]:
        with torch.no_grad():
            y, final = run(*self.inputs, self.state)
        assert final is not None
        return y, final

    def both(self, run: Run) -> tuple[Tensor, ...]:
        """y, the final state and the gradients of the six inputs and the state."""
        leaves = [x.detach().requires_grad_() for x in (*self.inputs, self.state)]
        y, final = run(*leaves)
        assert final is not None
        grads = torch.autograd.grad(
            (y, final), leaves, (self.dy, self.dfinal), materialize_grads=True, allow_unused=True
        )
        return y.detach(), final.detach(), *grads

    def truth(self) -> tuple[Tensor, ...]:
        """float64, on one thread: thousands of tiny operations gain nothing from more."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        double = Problem(tuple(x.double() for x in self.inputs), *(x.double() for x in self[1:]))
        try:
            return double.both(wkv7_reference)
        finally:
            torch.set_num_threads(threads)


# --------------------------------------------------------------------------------------------------- contestants


def _steps(inputs: Sequence[Sequence[Tensor]], state: Tensor) -> tuple[Tensor, Tensor]:
    ys = []
    for r, w, k, v, a, b in zip(*inputs, strict=True):  # each (B, H, D)
        removed = state @ a[..., None]
        state = state * w[..., None, :] + removed @ b[..., None, :] + v[..., None] @ k[..., None, :]
        ys.append((state @ r[..., None]).squeeze(-1))
    return torch.stack(ys, dim=1), state


def loop(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as written in the paper: x[:, t] and batched matrix products, in float32.

    Autograd answers each x[:, t] with a gradient as long as the sequence, so that its backward is quadratic in T.
    """
    inputs = [x.float() for x in (r, log_w.float().exp(), k, v, a, b)]
    return _steps([[x[:, t] for t in range(x.shape[1])] for x in inputs], state)


def unbound(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same loop over `unbind`, whose backward is linear in T: the best that the plain loop can do."""
    return _steps([x.float().unbind(dim=1) for x in (r, log_w.float().exp(), k, v, a, b)], state)


def _fla_naive(form: str) -> Run:
    """fla/ops/generalized_delta_rule/dplr/naive.py: [B, H, T, D], state (K, V), r scaled by K^-0.5."""
    from fla.ops.generalized_delta_rule.dplr import naive

    kernels: dict[str, Callable[..., Any]] = {
        "recurrence": naive.dplr_recurrence,
        "chunks of 16": functools.partial(naive.dplr_chunkwise, chunk_size=16),
    }
    kernel = kernels[form]

    def run(
        r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        r = r * r.shape[-1] ** 0.5
        y, final = kernel(*(x.transpose(1, 2) for x in (r, k, v, a, b, log_w)), initial_state=state.mT)
        return y.transpose(1, 2), final.mT

    return run


PEERS: dict[str, Callable[[], Run]] = {
    "loop": lambda: loop,
    "loop-unbind": lambda: unbound,
    "fla-recurrence": functools.partial(_fla_naive, "recurrence"),
    "fla-chunks": functools.partial(_fla_naive, "chunks of 16"),
}


def contestants(peers: list[str], backends: list[str]) -> dict[str, Run]:
    """Name -> run, the loop always among them.

    Raises:
        ValueError: an unknown name, or a backend that cannot run here.
    """
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise ValueError(f"unknown peer {unknown[0]!r}: choose among {', '.join(PEERS)}")
    if any(name.startswith("fla-") for name in peers) and versions("flash-linear-attention") == {
        "flash-linear-attention": "not installed"
    }:
        raise ValueError("the peers fla-* need flash-linear-attention: install it or pass --peers loop")
    reasons = available_backends()
    for name in backends:
        if name not in reasons:
            raise ValueError(f"unknown backend {name!r}: choose among {', '.join(reasons)}")
        if reasons[name] is not None:
            raise ValueError(f"the backend {name!r} cannot run here: {reasons[name]}")
    runs = {name: PEERS[name]() for name in dict.fromkeys(["loop", *peers])}
    return runs | {f"greylag {name}": functools.partial(wkv7, backend=name) for name in backends}


# ------------------------------------------------------------------------------------------------------ measuring


def relative_rms(found: Tensor, truth: Tensor) -> float:
    """RMS(found - truth) / RMS(truth); 0 where both vanish."""
    off = (found.double() - truth).norm()
    return 0.0 if off == 0 else float(off / truth.norm())


def errors(problem: Problem, truth: tuple[Tensor, ...], run: Run) -> tuple[float, float]:
    """The worst relative RMS of the outputs, and of the gradients that are not zero in truth (T = 1 has some)."""
    off = [relative_rms(x, y) for x, y in zip(problem.both(run), truth, strict=True) if y.any()]
    return max(off[:2]), max(off[2:])


def fits(name: str, shape: Shape) -> bool:
    return name != "fla-chunks" or shape.steps % 16 == 0


def measure(shape: Shape, runs: Mapping[str, Run], dtype: torch.dtype, device: str, turns: int) -> Table:
    """One table: each contestant's forward and forward+backward, and how many times the loop's speed that is."""
    problem = Problem.make(shape, dtype, device)
    truth = problem.truth()
    off = {name: errors(problem, truth, run) for name, run in runs.items() if fits(name, shape)}
    right = {name: runs[name] for name, (y, grad) in off.items() if y <= BOUNDS[dtype][0] and grad <= BOUNDS[dtype][1]}
    wait = torch.cuda.synchronize if device == "cuda" else None
    forward = side_by_side({n: functools.partial(problem.forward, run) for n, run in right.items()}, turns, 0.05, wait)
    both = side_by_side({n: functools.partial(problem.both, run) for n, run in right.items()}, turns, 0.05, wait)
    table = Table(
        str(shape),
        ["contestant", "forward", "x loop", "forward+backward", "x loop ", "error y", "error gradients"],
    )
    for name, error in off.items():
        table.add(name, *_speed(forward, name), *_speed(both, name), *error)
    return table


def _speed(timings: Mapping[str, Timing], name: str) -> tuple[Timing | str, float | None]:
    if name not in timings:
        return WRONG, None
    base = timings.get("loop")
    return timings[name], base.median / timings[name].median if base else None


def bounds(shape: Shape, backends: list[str], options: argparse.Namespace) -> list[Table]:
    """What the machine allows, beside what the backends make of it; ours only, on a CPU."""
    print("measuring rates, directions, attention, memory ...", file=sys.stderr, flush=True)
    problem, title = Problem.make(shape, torch.float32, "cpu"), str(shape)
    tables = [rates(title, problem.inputs, problem.dy, backends, options.turns)]
    tables.append(directions(title, problem.inputs, problem.dy, backends, options.turns))
    for steps in ATTENTION_STEPS:
        long = Problem.make(shape._replace(steps=steps), torch.float32, "cpu")
        tables.append(attention(long.inputs, long.dy, backends, options.turns))
    tables.append(memory(MEMORY_STEPS, *shape[2:], backends))
    return tables


# --------------------------------------------------------------------------------------------------- command line


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.wkv", description="WKV-7 backends against the step loop.")
    p.add_argument(
        "--backend", type=_names, default=None, help="comma-separated; default: native and chunked, as they run"
    )
    p.add_argument("--peers", type=_names, default=None, help=f"of {', '.join(PEERS)}; default: those installed")
    p.add_argument("--shapes", type=Shape.parse, nargs="+", default=[Shape.parse(DEFAULT_SHAPE)], metavar="BxTxHxKxV")
    p.add_argument("--short", action=argparse.BooleanOptionalAction, default=True, help=f"also T = {SHORT}")
    p.add_argument("--bounds", action="store_true", help="also rates, directions, attention, memory (CPU, float32)")
    p.add_argument("--turns", type=int, default=5, help="measured turns of each contestant")
    p.add_argument("--threads", type=int, default=None, help="PyTorch threads; default: PyTorch's own choice")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="of the inputs; log_w stays float32")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/wkv-<machine>.json and .md")
    p.add_argument("--output", type=Path, default=None, help="write JSON here and Markdown beside it")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, write them where asked; 1 if any contestant's output was off, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given)
    packages = versions("torch", "flash-linear-attention")
    installed = packages["flash-linear-attention"] != "not installed"
    peers = options.peers if options.peers is not None else list(PEERS) if installed else ["loop", "loop-unbind"]
    if options.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch sees no GPU here")
    if options.turns < 1:
        p.error(f"--turns must be at least 1, got {options.turns}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.backend is None:
        native = options.device == "cpu" and not available_backends()["native"]
        options.backend = ["native", "chunked"] if native else ["chunked"]
    try:
        runs = contestants(peers, options.backend)
    except ValueError as error:
        p.error(str(error))
    report = Report(
        "WKV-7: backends against the step loop",
        shlex.join(["python", "-m", "benchmarks.wkv", *given]),
        {"dtype": options.dtype, "device": options.device, "turns": options.turns, "seed": SEED},
        packages,
        notes=[
            "Median (least to most) over turns taken side by side; forward without gradients; forward+backward with "
            "all gradients, those of the initial state included.",
            "Errors: relative RMS against the float64 recurrence, the worst of y and the final state, and the worst "
            "of the gradients.",
        ],
    )
    shapes = list(options.shapes)
    if options.short:
        shapes += [options.shapes[0]._replace(steps=steps) for steps in SHORT]
    for shape in dict.fromkeys(shapes):
        print(f"measuring {shape} ...", file=sys.stderr, flush=True)
        report.tables.append(measure(shape, runs, DTYPES[options.dtype], options.device, options.turns))
    if options.bounds:
        report.tables += bounds(options.shapes[0], [name for name in options.backend if name != "reference"], options)
        report.notes += BOUNDS_NOTES
    print(report.markdown())
    if options.write or options.output:
        written = report.write(options.output or report.default_path("wkv"))
        print("written:", *written)
    return int(any(WRONG in row for table in report.tables for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
