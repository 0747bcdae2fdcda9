"""RWKV-7 language models on a CPU: the time of one token, and of reading a prompt, beside the `rwkv` package.

    python -m benchmarks.decode

Both load one .pth of random weights, all of them away from zero and one, and take turns in one process. Two bounds
stand beside them: for a token, the model's matrices each times a vector (``torch.mv``: what streaming the weights
costs in PyTorch); for a prompt, the same matrices times as many vectors. Everybody's logits are held to Greylag's
layers on the step-by-step reference first.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import WRONG, Report, Table, Timing, side_by_side, versions
from core import use_backend
from core.checkpoint import load_blinkdl, save_blinkdl
from core.lm import RWKV7LM

BOUND = 1e-4  # of logits with a standard deviation of one, largest difference
CONTEXT = 16  # tokens before the one that is timed
RWKV = "rwkv package"

Logits = Callable[[list[int]], tuple[Tensor, Callable[[], object]]]
"""Tokens -> the last one's logits (V,), and a call to be timed that computes them again."""


@torch.no_grad()
def randomise(lm: RWKV7LM) -> None:
    """Every parameter random at the scale where it matters, logits with a standard deviation of one."""
    draw = torch.Generator().manual_seed(0)
    for name, p in lm.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf.startswith("x_"):
            p.uniform_(generator=draw)
        elif p.ndim == 2 and leaf != "r_k" and not name.startswith("emb"):  # (out, in), or low-rank maps (in, out)
            p.normal_(std=p.shape[leaf == "weight"] ** -0.5, generator=draw)
        else:
            norm_weight = leaf == "weight" and p.ndim == 1
            p.normal_(mean=float(norm_weight), std=0.2 if norm_weight else 0.5, generator=draw)
    tokens = torch.randint(lm.emb.num_embeddings, (1, 64), generator=draw)
    lm.head.weight.div_(lm(tokens)[0].std())


def make_checkpoint(path: Path, vocab_size: int, dim: int, num_layers: int) -> None:
    with torch.device("meta"):  # the starting values take longer than all that follows, and are not wanted
        lm = RWKV7LM(vocab_size, dim, num_layers)
    lm.to_empty(device="cpu")
    randomise(lm.eval())
    save_blinkdl(lm, path)


# --------------------------------------------------------------------------------------------------- contestants


def greylag_token(lm: Callable[..., Any], tokens: list[int]) -> tuple[Tensor, Callable[[], object]]:
    *before, token = (torch.tensor([[t]]) for t in tokens)
    _, state = lm(torch.cat(before, dim=1))
    call = functools.partial(lm, token, state)
    return call()[0].flatten(), call


def greylag_prompt(lm: RWKV7LM, tokens: list[int]) -> tuple[Tensor, Callable[[], object]]:
    call = functools.partial(lm, torch.tensor([tokens]), last=True)
    return call()[0].flatten(), call


def load_rwkv(path: Path) -> Any:
    """BlinkDL's package in its fastest form on a CPU: TorchScript, float32."""
    os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0", RWKV_JIT_ON="1")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch.jit's deprecation
        from rwkv.model import RWKV as Model

        return Model(model=str(path.with_suffix("")), strategy="cpu fp32")


def rwkv_token(model: Any, tokens: list[int]) -> tuple[Tensor, Callable[[], object]]:
    _, state = model.forward(tokens[:-1], None)

    def call() -> Tensor:
        return model.forward(tokens[-1:], list(state))[0]  # it writes the new state into the list

    return call(), call


def rwkv_prompt(model: Any, tokens: list[int]) -> tuple[Tensor, Callable[[], object]]:
    def call() -> Tensor:
        return model.forward(list(tokens), None)[0]

    return call(), call


def matrices(lm: RWKV7LM) -> list[Tensor]:
    """All that a token is multiplied with, as (out, in): the head, the projections, the low-rank maps."""
    linear = [m.weight for m in lm.modules() if isinstance(m, nn.Linear)]
    pairs = [p.t() for name, p in lm.named_parameters() if name[-2:] in {f"{x}{i}" for x in "wavg" for i in (1, 2)}]
    return [*linear, *pairs]


def products(lm: RWKV7LM, tokens: int) -> Callable[[], object]:
    """Each matrix times a vector, or, but for the head, times `tokens` vectors: the bound."""
    found = matrices(lm)
    if tokens == 1:
        vectors = {n: torch.randn(n) for n in {m.shape[1] for m in found}}
        return lambda: [torch.mv(m, vectors[m.shape[1]]) for m in found]
    inputs = {n: torch.randn(tokens, n) for n in {m.shape[1] for m in found}}
    body, head = [m for m in found if m is not lm.head.weight], lm.head.weight

    def call() -> None:
        for m in body:
            nn.functional.linear(inputs[m.shape[1]], m)
        torch.mv(head, inputs[head.shape[1]][0])

    return call


# ------------------------------------------------------------------------------------------------------ measuring


def measure(
    title: str, runs: Mapping[str, Logits], truth: Logits, bound: tuple[str, Callable[[], object]], tokens: list[int],
    counted: int, turns: int,
) -> Table:  # fmt: skip
    """One table: time, tokens per second, both compared; a contestant whose logits are off gets none of it."""
    wanted = truth(tokens)[0]
    made = {name: run(tokens) for name, run in runs.items()}
    off = {name: float((logits - wanted).abs().max() / wanted.std()) for name, (logits, _) in made.items()}
    calls = {name: call for name, (_, call) in made.items() if off[name] <= BOUND}
    timings = side_by_side({bound[0]: bound[1], **calls}, turns, least=0.25)
    table = Table(title, ["contestant", "time", "tokens/s", "x bound", f"x {RWKV}", "error"])
    for name in [bound[0], *runs]:
        table.add(name, *_compared(timings, name, bound[0], counted), off.get(name))
    return table


def _compared(timings: Mapping[str, Timing], name: str, bound: str, counted: int) -> list[Any]:
    if name not in timings:
        return [WRONG, None, None, None]
    time, rival = timings[name].median, timings.get(RWKV)
    return [timings[name], counted / time, time / timings[bound].median, rival.median / time if rival else None]


@torch.inference_mode()
def tables(path: Path, options: argparse.Namespace, *, with_rwkv: bool) -> list[Table]:
    lm = load_blinkdl(path)
    model = load_rwkv(path) if with_rwkv else None
    tokens = torch.randint(
        lm.emb.num_embeddings, (CONTEXT + options.prompt,), generator=torch.Generator().manual_seed(1)
    )

    def by_reference(run: Callable[..., Any], tokens: list[int]) -> Any:
        with use_backend("reference"):
            return run(lm, tokens)

    size = f"{options.layers} x {options.dim}, vocabulary {options.vocabulary}, float32"
    token_runs: dict[str, Logits] = {"greylag": functools.partial(greylag_token, lm)}
    if options.compile:
        token_runs["greylag, torch.compile"] = functools.partial(greylag_token, torch.compile(lm))
    prompt_runs: dict[str, Logits] = {"greylag": functools.partial(greylag_prompt, lm)}
    if model is not None:
        token_runs[RWKV] = functools.partial(rwkv_token, model)
        prompt_runs[RWKV] = functools.partial(rwkv_prompt, model)
    one = measure(
        f"One token: {size}", token_runs, functools.partial(by_reference, greylag_token),
        ("bound: torch.mv", products(lm, 1)), tokens[: CONTEXT + 1].tolist(), 1, options.turns,
    )  # fmt: skip
    many = measure(
        f"A prompt of {options.prompt} tokens, its last logits: {size}", prompt_runs,
        functools.partial(by_reference, greylag_prompt), ("bound: matrix products", products(lm, options.prompt)),
        tokens[: options.prompt].tolist(), options.prompt, options.turns,
    )  # fmt: skip
    return [one, many]


# --------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.decode", description="Generation and prompts on a CPU.")
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--dim", type=int, default=768, help="width, a multiple of 64")
    p.add_argument("--vocabulary", type=int, default=65536)
    p.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt")
    p.add_argument("--turns", type=int, default=7, help="measured turns of each contestant")
    p.add_argument("--threads", type=int, default=None, help="PyTorch threads; default: PyTorch's own choice")
    p.add_argument("--compile", action="store_true", help="also time the layers under torch.compile, token by token")
    p.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="time the rwkv package")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/decode-<machine>.json and .md")
    p.add_argument("--output", type=Path, default=None, help="write JSON here and Markdown beside it")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, write them where asked; 1 if any contestant's logits were off, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given)
    for name, least in (("layers", 1), ("dim", 64), ("vocabulary", 2), ("prompt", 2), ("turns", 1)):
        if getattr(options, name) < least:
            p.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.dim % 64:
        p.error(f"--dim must be a multiple of 64 (a head's size), got {options.dim}")
    packages = versions("torch", "rwkv")
    if options.peer and packages["rwkv"] == "not installed":
        p.error("the peer is not installed: pip install rwkv, or pass --no-peer")
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report(
        "RWKV-7 language models on a CPU: one token, one prompt",
        shlex.join(["python", "-m", "benchmarks.decode", *given]),
        {"layers": options.layers, "dim": options.dim, "vocabulary": options.vocabulary, "turns": options.turns},
        packages,
        notes=[
            "Median (least to most) over turns taken side by side in one process, batch 1, no gradients.",
            "The rwkv package: TorchScript, strategy 'cpu fp32', the same .pth.",
            "Bounds: all matrices once, each times a vector by torch.mv; and each times as many vectors as the prompt "
            "has tokens, the head times one.",
            "Error: largest difference of the logits from Greylag's layers on the step-by-step reference, over their "
            f"standard deviation; above {BOUND:g} there is no speed.",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        print("making a random checkpoint ...", file=sys.stderr, flush=True)
        make_checkpoint(path, options.vocabulary, options.dim, options.layers)
        print("measuring ...", file=sys.stderr, flush=True)
        report.tables += tables(path, options, with_rwkv=options.peer)
    print(report.markdown())
    if options.write or options.output:
        print("written:", *report.write(options.output or report.default_path("decode")))
    return int(any(WRONG in row for table in report.tables for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
