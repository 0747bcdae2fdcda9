"""The WKV-7 operator on a GPU: Greylag's Triton kernels beside flash-linear-attention's and softmax attention.

    python -m benchmarks.gpu_wkv --write

Times are between CUDA events, on inputs newly drawn for every turn, with the caches swept before each call. Every
WKV contestant's output and gradients are first held to the float64 recurrence, on the first row's outermost heads;
who is off gets no speed. "Both directions" doubles the heads: the second half walks the sequence from its end, for
fla as a second call on flipped inputs.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import WRONG, Report, Table, Timing, versions
from benchmarks.wkv import BOUNDS, DTYPES, Shape, relative_rms
from core.wkv import available_backends, wkv7, wkv7_reference
from core.wkv.triton import wkv7_triton

SHAPES = ("8x4096x32x64x64", "64x196x6x64x64", "64x196x12x64x64", "64x1024x6x64x64", "64x1024x12x64x64")
LONG = ("1x262144x32x64x64", "1x262144x136x64x64")  # the second one has more than 2^31 elements
STEP_BY_STEP = 4096  # longer truths come from the float64 chunk form, which the tests hold to the recurrence
NO_MEMORY = "out of memory"

Run = Callable[..., Tensor]


class Inputs(NamedTuple):
    """r, log_w, k, v, a, b as TimeMix makes them, and a cotangent for y."""

    tensors: tuple[Tensor, ...]
    dy: Tensor

    @classmethod
    def make(cls, shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Inputs:
        draw = torch.Generator(device).manual_seed(seed)
        batch, steps, heads, key_dim, value_dim = shape

        def randn(dim: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.randn(batch, steps, heads, dim, generator=draw, device=device, dtype=kind)

        kk = F.normalize(randn(key_dim), dim=-1)
        log_w = randn(key_dim, torch.float32).sigmoid_().mul_(-0.6065306597)
        r, k, v, iclr = randn(key_dim), randn(key_dim), randn(value_dim), randn(key_dim).sigmoid_()
        return cls((r, log_w, k, v, -kk, kk * iclr), randn(value_dim))

    def forward(self, run: Run) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (run(*self.tensors),)

    def both(self, run: Run) -> tuple[Tensor, ...]:
        """y and the gradients of those inputs that `run` uses."""
        leaves = [x.detach().requires_grad_() for x in self.tensors]
        y = run(*leaves)
        grads = torch.autograd.grad(y, leaves, self.dy, allow_unused=True)
        return y.detach(), *(g for g in grads if g is not None)


# --------------------------------------------------------------------------------------------------- contestants


def _turned(x: Tensor) -> Tensor:
    return x.flip(1)


def two_calls(run: Run) -> Run:
    """Both directions by a kernel that knows one: the second half of the heads on flipped copies."""

    def both_ways(*inputs: Tensor) -> Tensor:
        halves = [x.chunk(2, dim=2) for x in inputs]
        ahead = run(*(x for x, _ in halves))
        back = run(*(_turned(x) for _, x in halves))
        return torch.cat((ahead, _turned(back)), dim=2)

    return both_ways


def by_triton(both_ways: bool) -> Run:
    def run(*inputs: Tensor) -> Tensor:
        heads = inputs[0].shape[2] // 2 if both_ways else 0
        return wkv7_triton(*inputs, return_state=False, backward_heads=heads)[0]

    return run


def by_fla(both_ways: bool) -> Run:
    from core.wkv.fla import LOWER_BOUND, kernels

    def run(*inputs: Tensor) -> Tensor:
        return kernels().chunk(*(x.contiguous() for x in inputs), scale=1.0, lower_bound=LOWER_BOUND)[0]

    return two_calls(run) if both_ways else run


def by_attention(both_ways: bool) -> Run:
    def run(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (r, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=not both_ways).transpose(1, 2)

    return run


CONTESTANTS: dict[str, Callable[[bool], Run]] = {
    "greylag triton": by_triton, "fla chunk_rwkv7": by_fla, "SDPA": by_attention,
}  # fmt: skip
OTHER_MATHS = ("SDPA",)  # timed for comparison, but computing something else


# --------------------------------------------------------------------------------------------------------- errors


def truth(sample: Inputs, both_ways: bool) -> tuple[Tensor, ...]:
    """y and gradients in float64."""
    double = Inputs(tuple(x.double() for x in sample.tensors), sample.dy.double())

    def run(*inputs: Tensor) -> Tensor:
        if inputs[0].shape[1] <= STEP_BY_STEP:
            return wkv7_reference(*inputs, return_state=False)[0]
        return wkv7(*inputs, return_state=False, backend="chunked")[0]

    return double.both(two_calls(run) if both_ways else run)


def errors(inputs: Inputs, run: Run, both_ways: bool) -> tuple[float, float]:
    """Relative RMS of y and of the worst gradient, over the first row's first and last heads."""

    def sample(x: Tensor) -> Tensor:
        return torch.cat((x[:1, :, :1], x[:1, :, -1:]), dim=2)

    found = [sample(x).clone() for x in inputs.both(run)]
    right = truth(Inputs(tuple(sample(x) for x in inputs.tensors), sample(inputs.dy)), both_ways)
    off = [relative_rms(x, y) for x, y in zip(found, right, strict=True)]
    return off[0], max(off[1:])


# --------------------------------------------------------------------------------------------------------- timing


class Clock(Protocol):
    """Measures one call, in seconds."""

    def __call__(self, call: Callable[[], object]) -> float: ...


class Events:
    """CUDA events around a call, after a sweep of the level-2 cache."""

    def __init__(self) -> None:
        self.sweep = torch.empty(2**28, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.sweep.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def bandwidth(clock: Clock, device: str, size: int = 2**30) -> float:
    """Bytes per second that a copy moves, reads and writes counted; the best of ten."""
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(clock(lambda: target.copy_(source)) for _ in range(10))


def least_bytes(shape: Shape, dtype: torch.dtype, backward: bool) -> int:
    """What must cross the memory bus: forward: six inputs in, y out; backward: these and dy in, six gradients out."""
    batch, steps, heads, key_dim, value_dim = shape
    values = value_dim * dtype.itemsize
    inputs = 4 * key_dim * dtype.itemsize + 4 * key_dim + values  # log_w is float32
    per_step = inputs + values + (2 * inputs + values if backward else 0)
    return batch * steps * heads * per_step


def in_turns(
    runs: Mapping[str, Run], way: str, make: Callable[[int], Inputs], turns: int, clock: Clock
) -> dict[str, Timing | str]:
    """Each turn draws inputs and times every contestant on them; `way` is a method of Inputs."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    lost: set[str] = set()
    for turn in range(-2, turns):  # two calls to compile, tune and warm up
        inputs = make(turn + 2)
        for name, run in runs.items():
            if name in lost:
                continue
            try:
                spent = clock(functools.partial(getattr(inputs, way), run))
            except torch.OutOfMemoryError:
                lost.add(name)
                continue
            if turn >= 0:
                taken[name].append(spent)
        del inputs
    return {name: NO_MEMORY if name in lost else Timing(tuple(times)) for name, times in taken.items()}


def measure(shape: Shape, both_ways: bool, options: Options, clock: Clock, rate: float) -> Table:
    """One table; `rate` is the memory's, in bytes per second."""
    dtype = DTYPES[options.dtype]
    whole = shape._replace(heads=2 * shape.heads) if both_ways else shape
    make = functools.partial(Inputs.make, whole, dtype, options.device)
    runs = {name: CONTESTANTS[name](both_ways) for name in options.contestants}
    off: dict[str, tuple[float | str | None, float | str | None]] = {}
    for name, run in runs.items():
        try:
            off[name] = (None, None) if name in OTHER_MATHS else errors(make(0), run, both_ways)
        except torch.OutOfMemoryError:
            off[name] = (NO_MEMORY, NO_MEMORY)
    right = {name: run for name, run in runs.items() if _is_right(off[name], dtype)}
    forward = in_turns(right, "forward", make, options.turns, clock)
    both = in_turns(right, "both", make, options.turns, clock)
    columns = ["forward", "of the bound", "forward+backward", "of the bound ", "x fla", "error y", "error gradients"]
    table = Table(f"{shape}, {'both directions' if both_ways else 'one direction'}", ["contestant", *columns])
    for name in runs:
        cells = []
        for times, backward in ((forward, False), (both, True)):
            share = None if name in OTHER_MATHS else _share(times.get(name), least_bytes(whole, dtype, backward), rate)
            cells += [times.get(name, WRONG if isinstance(off[name][0], float) else NO_MEMORY), share]
        table.add(name, *cells, _ratio(both.get("fla chunk_rwkv7"), both.get(name)), *off[name])
    return table


def _is_right(off: tuple[float | str | None, float | str | None], dtype: torch.dtype) -> bool:
    return all(x is None or (isinstance(x, float) and x <= bound) for x, bound in zip(off, BOUNDS[dtype], strict=True))


def _share(timing: Timing | str | None, size: int, rate: float) -> str | None:
    return f"{size / rate / timing.median:.0%}" if isinstance(timing, Timing) else None


def _ratio(base: Timing | str | None, timing: Timing | str | None) -> float | None:
    return base.median / timing.median if isinstance(base, Timing) and isinstance(timing, Timing) else None


# --------------------------------------------------------------------------------------------------- command line


class Options(argparse.Namespace):
    """The command's arguments."""

    shapes: list[Shape]
    contestants: list[str]
    dtype: str
    turns: int
    long: bool
    both: bool
    write: bool
    output: Path | None
    device: str = "cuda"


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CONTESTANTS:
            raise argparse.ArgumentTypeError(f"unknown contestant {name!r}: choose among {', '.join(CONTESTANTS)}")
    return names


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.gpu_wkv", description="WKV-7 on a GPU, beside its peers.")
    p.add_argument("--shapes", type=Shape.parse, nargs="+", default=list(map(Shape.parse, SHAPES)), metavar="BxTxHxKxV")
    p.add_argument("--contestants", type=_names, default=None, help=f"of {', '.join(CONTESTANTS)}; default: all")
    p.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the inputs; log_w stays float32")
    p.add_argument("--turns", type=int, default=20, help="measured turns of each contestant")
    p.add_argument("--both", action=argparse.BooleanOptionalAction, default=True, help="also both directions")
    p.add_argument("--long", action=argparse.BooleanOptionalAction, default=True, help=f"also {' and '.join(LONG)}")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/gpu_wkv-<machine>.json and .md")
    p.add_argument("--output", type=Path, default=None, help="write JSON here and Markdown beside it")
    return p


def report_of(options: Options, command: str, clock: Clock, rate: float) -> Report:
    report = Report(
        "WKV-7 on a GPU",
        command,
        {"dtype": options.dtype, "turns": options.turns},
        versions("torch", "triton", "flash-linear-attention"),
        notes=[
            "Median (least to most) between CUDA events, inputs newly drawn for every turn; forward without gradients.",
            f"Bound: the six inputs, y, dy and the six gradients crossing the bus as often as they must, at "
            f"{rate / 1e9:.0f} GB/s, the best of ten copies of 1 GiB in this run.",
            "Errors: relative RMS against float64, of y and of the worst gradient.",
            "SDPA: torch's scaled_dot_product_attention on r, k, v of the same width; other maths, no error.",
        ],
    )
    tasks = [
        (shape, both_ways) for shape in options.shapes for both_ways in ((False, True) if options.both else (False,))
    ]
    tasks += [(Shape.parse(text), False) for text in LONG] if options.long else []
    for shape, both_ways in tasks:
        print(f"measuring {shape} ...", file=sys.stderr, flush=True)
        one = options
        if shape.steps > 2**17:  # attention would take minutes
            one = Options(**{**vars(options), "contestants": [x for x in options.contestants if x not in OTHER_MATHS]})
        report.tables.append(measure(shape, both_ways, one, clock, rate))
    return report


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, write them where asked; 1 if any output was off, 2 for a wrong argument or without a GPU."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given, Options())
    if options.turns < 1:
        p.error(f"--turns must be at least 1, got {options.turns}")
    if not torch.cuda.is_available():
        p.error("this benchmark needs a CUDA or ROCm GPU, and torch sees none here")
    reason = available_backends()["fla"]
    if options.contestants is None:
        options.contestants = [name for name in CONTESTANTS if reason is None or name != "fla chunk_rwkv7"]
    elif reason is not None and "fla chunk_rwkv7" in options.contestants:
        p.error(f"fla chunk_rwkv7 cannot run here: {reason}")
    clock = Events()
    command = shlex.join(["python", "-m", "benchmarks.gpu_wkv", *given])
    report = report_of(options, command, clock, bandwidth(clock, options.device))
    print(report.markdown())
    if options.write or options.output:
        print("written:", *report.write(options.output or report.default_path("gpu_wkv")))
    return int(any(WRONG in row for table in report.tables for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
