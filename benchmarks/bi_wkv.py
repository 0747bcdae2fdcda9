"""Vision-RWKV's attention over both directions: running sums beside the loop over tokens, and their errors.

    python -m benchmarks.bi_wkv

The loop is the recurrence with running maxima that the official kernel computes, once in each direction, written over
tokens in PyTorch; the matrix is the T x T weights of each channel. Both are the same function; each contestant's output
and gradients are held to float64 first. Attention is another function, beside them for its time alone.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import WRONG, Report, Table, side_by_side, versions
from core.layers.bi_wkv import bi_wkv, bi_wkv_recurrence

WIDTH = 192
ALLOWED = 1e-4
MATRIX_TOKENS = 512  # beyond them the matrices take seconds
Run = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def matrix(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """All pairs: the weights that do not depend on the keys, a matrix per channel, times keyed values."""
    tokens = torch.arange(k.shape[1])
    distance = (tokens[:, None] - tokens).abs()
    exponent = -(distance - 1) * decay[:, None, None]
    weights = torch.where(distance > 0, exponent, bonus[:, None, None]).exp()
    keys = (k - k.amax(1, keepdim=True)).exp()
    pairs = torch.stack((keys * v, keys)).permute(3, 2, 0, 1).flatten(2)
    total, weight = (weights @ pairs).unflatten(2, (2, -1)).unbind(2)
    return (total / weight).permute(2, 1, 0)


def softmax_attention(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """SDPA with heads of 64 channels, the keys as queries."""
    keys, values = (x.unflatten(2, (-1, 64)).transpose(1, 2) for x in (k, v))
    y = F.scaled_dot_product_attention(keys, keys, values).transpose(1, 2).flatten(2)
    return y + 0 * (decay.sum() + bonus.sum())  # every input has a gradient


RUNS: dict[str, Run] = {"running sums": bi_wkv, "loop": bi_wkv_recurrence, "matrix": matrix}


def problem(batch: int, tokens: int, keys: float = 1.0, strength: float = 5.0) -> tuple[Tensor, ...]:
    """Keys of that spread, decays from -strength to strength over the sequence; float32."""
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(batch, tokens, WIDTH, generator=draw) for _ in range(2))
    bonus = torch.randn(WIDTH, generator=draw) / tokens
    return keys * k, v, torch.linspace(-strength, strength, WIDTH) / tokens, bonus


def forward_backward(run: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The output and the gradients of its weighted sum."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = run(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))


def errors(run: Run, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Relative RMS of the output, and the worst gradient's, against the recurrence in float64."""
    truth = forward_backward(bi_wkv_recurrence, [x.double() for x in inputs])
    off = [float((x - y).norm() / y.norm()) for x, y in zip(forward_backward(run, inputs), truth, strict=True)]
    return off[0], max(off[1:])


def speed(shape: tuple[int, int], turns: int) -> Table:
    """Forward without gradients, and forward with backward, side by side."""
    inputs = problem(*shape)
    table = Table(
        f"B={shape[0]} T={shape[1]} C={WIDTH}",
        ["contestant", "error y", "error gradients", "forward", "forward+backward"],
    )
    runs = {name: run for name, run in RUNS.items() if name != "matrix" or shape[1] <= MATRIX_TOKENS}
    off = {name: errors(run, inputs) for name, run in runs.items()}
    right = {name: run for name, run in runs.items() if max(off[name]) < ALLOWED} | {"SDPA": softmax_attention}

    def ahead(run: Run) -> Callable[[], object]:
        return torch.no_grad()(lambda: run(*inputs))

    forward = side_by_side({name: ahead(run) for name, run in right.items()}, turns)
    both = side_by_side({name: lambda run=run: forward_backward(run, inputs) for name, run in right.items()}, turns)
    for name in (*runs, "SDPA"):
        table.add(name, *off.get(name, (None, None)), forward.get(name, WRONG), both.get(name, WRONG))
    return table


def accuracy(tokens: int) -> Table:
    """Hard inputs: keys that leave all weight to single tokens, decays beyond any trained model's."""
    table = Table(f"Errors of the output, T={tokens}", ["keys", "decay over the sequence", "running sums", "loop"])
    for keys, strength in ((1.0, 5.0), (10.0, 5.0), (100.0, 5.0), (1.0, 29.0), (100.0, 29.0)):
        inputs = problem(1, tokens, keys, strength)
        truth = bi_wkv_recurrence(*(x.double() for x in inputs))
        off = [float((run(*inputs) - truth).norm() / truth.norm()) for run in (bi_wkv, bi_wkv_recurrence)]
        table.add(keys, f"e^-{strength:g} to e^{strength:g}", *off)
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked; returns the exit code."""
    words = sys.argv[1:] if words is None else list(words)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bi_wkv", description="bi_wkv beside a loop over tokens")
    parser.add_argument("--shapes", default="1x196,1x1024,16x196", help="batch x tokens, several with commas")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write a .json and a .md there")
    parser.add_argument("--write", action="store_true", help="write them to docs/benchmarks")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    shapes = [(int(batch), int(tokens)) for batch, tokens in (shape.split("x") for shape in args.shapes.split(","))]
    report = Report(
        "bi_wkv: running sums beside the loop", shlex.join(["python", "-m", "benchmarks.bi_wkv", *words]),
        {"shapes": args.shapes, "turns": args.turns, "threads": args.threads}, versions("torch"),
    )  # fmt: skip
    report.tables += [speed(shape, args.turns) for shape in shapes]
    report.tables.append(accuracy(max(tokens for _, tokens in shapes)))
    report.notes.append("Errors: relative RMS against the recurrence in float64; of gradients the worst.")
    print(report.markdown())
    if args.write or args.output:
        print(*report.write(args.output or report.default_path("bi_wkv")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
