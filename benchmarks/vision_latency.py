"""One image through VRWKV-7, through timm's ViT of the same width and depth, and through our attention twin.

    python -m benchmarks.vision_latency --sizes 224,512,1024,2048

Latency and peak memory by image size, batch 1, no gradients. timm's ViT and the twin run PyTorch's SDPA. Each model is
built for the size it is measured at, so that nobody resamples position embeddings. An answer that is not finite, or of
VRWKV-7 one that the `chunked` backend does not give, gets no speed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import apps.vision  # registers vrwkv7_* with timm
from benchmarks.memory import growth
from benchmarks.report import WRONG, Report, Table, Timing, side_by_side, versions
from core.wkv import use_backend

assert apps.vision is not None
PATCH = 16
RIVAL = "timm vit_tiny, SDPA"
OURS = "vrwkv7_tiny_patch16_224"
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    RIVAL: ("vit_tiny_patch16_224", {}),
    "attention twin, SDPA": (OURS, {"mixer": "attention"}),
    "VRWKV-7 tiny, alternate": (OURS, {"scan": "alternate"}),
    "VRWKV-7 tiny, two directions": (OURS, {"scan": "bidirectional"}),
}
"""Name in the tables -> timm's name of the model and its options."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Largest difference of the logits from those of `chunked`, over their standard deviation. Twelve blocks long.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.2}


def build(name: str, size: int, device: str, dtype: torch.dtype, **changed: Any) -> nn.Module:
    """A contestant for `size` x `size` pixels, with weights that leave no branch silent, ready to infer."""
    architecture, options = CONTESTANTS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, img_size=size, **{**options, **changed})
    return _loud(model).to(device, dtype).eval()


def _loud(model: nn.Module) -> nn.Module:
    """Weights that start at zero (output projections) would hide whatever the mixers compute."""
    for p in model.parameters():
        if p.ndim == 2 and not p.any():
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model


def picture(size: int, device: str, dtype: torch.dtype) -> Tensor:
    """Noise (1, 3, size, size), normalised."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn((1, 3, size, size), generator=draw).to(device, dtype)


# ------------------------------------------------------------------------------------------------------- measuring


def error(name: str, model: nn.Module, x: Tensor) -> float:
    """How far the logits are off; of models without the operator only whether they are finite (0) or not (nan)."""
    logits = model(x).float()
    if not logits.isfinite().all():
        return float("nan")
    if not uses_operator(name):
        return 0.0
    with use_backend("chunked"):
        wanted = model(x).float()
    return float((logits - wanted).abs().max() / wanted.std())


def uses_operator(name: str) -> bool:
    """Whether a contestant's token mixer is the WKV operator."""
    architecture, options = CONTESTANTS[name]
    return architecture == OURS and options.get("mixer", "rwkv7") == "rwkv7"


@torch.inference_mode()
def measure(size: int, names: list[str], device: str, dtype: torch.dtype, turns: int, *, memory: bool) -> Table:
    """One table: latency, against timm's ViT, peak memory if asked for."""
    x = picture(size, device, dtype)
    models = {name: build(name, size, device, dtype) for name in names}
    off = {name: error(name, model, x) for name, model in models.items()}
    calls: Mapping[str, Callable[[], object]] = {
        name: functools.partial(model, x) for name, model in models.items() if off[name] <= BOUNDS[dtype]
    }
    timings = side_by_side(calls, turns, 0.05, torch.cuda.synchronize if device == "cuda" else None)
    table = Table(
        f"{size} x {size} pixels, {(size // PATCH) ** 2:,} tokens",
        ["model", "parameters", "latency", "times the ViT's speed", "peak memory, MiB", "error"],
    )
    for name, model in models.items():
        most = peak(name, size, device, dtype, model) / 2**20 if memory and name in timings else None
        parameters = sum(p.numel() for p in model.parameters())
        table.add(name, parameters, *_speed(timings, name), most, off[name] if uses_operator(name) else None)
    return table


def _speed(timings: Mapping[str, Timing], name: str) -> tuple[Timing | str, float | None]:
    if name not in timings:
        return WRONG, None
    rival = timings.get(RIVAL)
    return timings[name], rival.median / timings[name].median if rival else None


# ---------------------------------------------------------------------------------------------------------- memory


def peak(name: str, size: int, device: str, dtype: torch.dtype, model: nn.Module) -> int:
    """Bytes that one forward pass needs at most beyond the loaded model and the image."""
    if device == "cuda":
        x = picture(size, device, dtype)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, "-m", "benchmarks.vision_latency", "--peak", name, str(size), str(dtype).split(".")[-1]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


@torch.inference_mode()
def _own_peak(name: str, size: int, dtype: torch.dtype) -> int:
    """The same on a CPU, of this process, which should be fresh."""
    build(name, 4 * PATCH, "cpu", dtype)(picture(4 * PATCH, "cpu", dtype))  # everything that is loaded once
    model, x = build(name, size, "cpu", dtype), picture(size, "cpu", dtype)
    return growth(lambda: model(x))


# ---------------------------------------------------------------------------------------------------- command line


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < PATCH or any(size % PATCH for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: give multiples of {PATCH}, comma-separated, such as 224,1024")
    return sizes


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.vision_latency", description="Latency and memory by image size.")
    p.add_argument("--sizes", type=_sizes, default=[224, 512, 1024, 2048], help="edges in pixels, comma-separated")
    p.add_argument("--models", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    p.add_argument("--turns", type=int, default=5, help="measured turns of each model")
    p.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure peak memory")
    p.add_argument("--threads", type=int, default=None, help="PyTorch threads; default: PyTorch's own choice")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=DTYPES, default=None, help="default: bfloat16 on a GPU, else float32")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/vision-latency-<machine>.json and .md")
    p.add_argument("--output", type=Path, default=None, help="write JSON here and Markdown beside it")
    p.add_argument("--peak", nargs=3, metavar=("NAME", "SIZE", "DTYPE"), help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, write them where asked; 1 if any model's logits were off, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given)
    if options.peak:
        name, size, dtype = options.peak
        print(_own_peak(name, int(size), DTYPES[dtype]))
        return 0
    if options.turns < 1:
        p.error(f"--turns must be at least 1, got {options.turns}")
    if options.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch sees no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    report = Report(
        "VRWKV-7 tiny against ViT tiny: latency and memory by image size",
        shlex.join(["python", "-m", "benchmarks.vision_latency", *given]),
        {"device": options.device, "dtype": dtype, "turns": options.turns, "batch": 1},
        versions("torch", "timm"),
        notes=[
            f"Batch 1, {dtype} on {options.device}, no gradients, random weights, patches of {PATCH} pixels; median "
            "(least to most) over turns taken side by side in one process.",
            "timm's ViT and the twin use PyTorch's scaled_dot_product_attention (SDPA). The twin has VRWKV-7's "
            "skeleton and number of parameters, timm's ViT its width and depth.",
            "Peak memory: growth during one forward pass beyond the loaded model and the image, "
            + ("as CUDA's allocator counts it." if options.device == "cuda" else "each in a fresh process."),
            "Error: largest difference of the logits from those through the `chunked` backend, over their standard "
            f"deviation; above {BOUNDS[DTYPES[dtype]]:g}, or with logits that are not finite, there is no speed.",
        ],
    )
    for size in options.sizes:
        print(f"measuring {size} x {size} ...", file=sys.stderr, flush=True)
        table = measure(size, options.models, options.device, DTYPES[dtype], options.turns, memory=options.memory)
        report.tables.append(table)
        print(table.markdown(), file=sys.stderr, flush=True)
    print(report.markdown())
    if options.write or options.output:
        print("written:", *report.write(options.output or report.default_path("vision-latency")))
    return int(any(WRONG in row for table in report.tables for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
