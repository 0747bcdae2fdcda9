"""What a classifier's answers are worth: accuracy overall and by class, calibration, other resolutions, speed, memory.

The work of ``greylag evaluate`` beyond the metrics that training logs.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from apps.vision.metrics import BINS, bin_answers
from core.errors import UserError


@dataclass(frozen=True)
class Answers:
    """A model's answers on labelled pictures, and what they cost.

    Attributes:
        logits: (N, C) float32, on the CPU.
        targets: (N,) int64.
        images_per_second: of the forward pass alone, data loading left out: the median over the batches after the
            first, or the first where there is only one.
        peak_bytes: the most memory in use meanwhile; see :class:`PeakMemory`.
    """

    logits: Tensor
    targets: Tensor
    images_per_second: float
    peak_bytes: int


@torch.inference_mode()
def collect(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Answers:
    """Run a model in evaluation mode over labelled batches.

    Args:
        model: images (B, C', H, W) -> logits (B, C).
        batches: (images, targets) pairs.
        device: the model's.
        context: entered around every forward pass, e.g. autocast.
    """
    training = model.training
    model.eval()
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    rates: list[float] = []
    with PeakMemory(device) as memory:
        for images, labels in batches:
            images = images.to(device)
            _wait_for(device)
            start = time.perf_counter()
            with context():
                answer = model(images)
            _wait_for(device)
            rates.append(len(images) / (time.perf_counter() - start))
            logits.append(answer.float().cpu())
            targets.append(labels.cpu())
    model.train(training)
    return Answers(torch.cat(logits), torch.cat(targets), statistics.median(rates[1:] or rates), memory.bytes)


def _wait_for(device: torch.device) -> None:
    """Kernels on a GPU run on after their call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The most memory in use inside a ``with`` block, in ``bytes``.

    On a GPU what PyTorch's allocator gave out; on a CPU the whole process's resident memory, libraries and data
    included. Linux lets a process set its peak back; elsewhere it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # not Linux
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _peak_resident()


def _peak_resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def accuracy_by_class(predicted: Tensor, targets: Tensor, classes: int) -> list[float | None]:
    """The share of each class's pictures that were given that class (its recall); None for a class without pictures."""
    total = torch.bincount(targets, minlength=classes)
    right = torch.bincount(targets[predicted == targets], minlength=classes)
    return [int(r) / int(n) if n else None for r, n in zip(right, total, strict=True)]


def judge(answers: Answers, class_names: Sequence[str], bins: int = BINS) -> dict[str, Any]:
    """All numbers of one pass as plain values; shares and errors in [0, 1], memory in bytes."""
    logits, targets = answers.logits, answers.targets
    probabilities = logits.double().softmax(-1)
    predicted = logits.argmax(-1)
    best = logits.topk(min(5, logits.shape[1])).indices
    classes = accuracy_by_class(predicted, targets, len(class_names))
    seen = [share for share in classes if share is not None]
    found: dict[str, Any] = {
        "images": len(targets),
        "loss": float(torch.nn.functional.cross_entropy(logits.double(), targets)),
        "top1": float((predicted == targets).double().mean()),
        "top5": float((best == targets[:, None]).any(1).double().mean()) if logits.shape[1] > 5 else None,
        "mean_class_accuracy": statistics.fmean(seen),
        "calibration_error": float(bin_answers(probabilities, targets, bins).error),
        "calibration_bins": bins,
        "images_per_second": round(answers.images_per_second, 2),
        "peak_memory_bytes": answers.peak_bytes,
        "classes": {
            name: {"images": int(n), "accuracy": share}
            for name, n, share in zip(
                class_names, torch.bincount(targets, minlength=len(class_names)), classes, strict=True
            )
        },
    }
    return {key: value for key, value in found.items() if value is not None}


def checked_factors(value: Any) -> list[float]:
    """The resolutions asked for: multiples of the training resolution. Raises UserError for anything else."""
    factors = value if isinstance(value, list | tuple) else [value]
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 16:
            raise UserError(
                f"eval.resolutions has {factor!r}; expected multiples of the training resolution up to 16, "
                "such as eval.resolutions=[0.5,1,2,4]."
            )
    return [float(factor) for factor in factors]


def checked_bins(value: Any) -> int:
    """The number of intervals of the calibration error. Raises UserError unless it is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"eval.bins is {value!r}; a whole number of at least 1 was expected.")
    return value


def size_at(img_size: Sequence[int], factor: float, patch: Sequence[int]) -> tuple[int, int]:
    """(height, width) at a multiple of the training resolution, in whole patches: edges are not to be padded."""
    height, width = (max(1, round(edge * factor / step)) * step for edge, step in zip(img_size, patch, strict=True))
    return height, width


def show(console: Console, split: str, found: dict[str, Any], worst: int = 5) -> None:
    """Print what :func:`judge` found for one split: the numbers, and the weakest classes."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("calibration error", f"{found['calibration_error']:.4f} ({found['calibration_bins']} bins)")
    table.add_row("mean accuracy of the classes", f"{found['mean_class_accuracy']:.4f}")
    shares = [(entry["accuracy"], name) for name, entry in found["classes"].items() if entry["accuracy"] is not None]
    for share, name in sorted(shares, key=lambda item: item[0])[:worst]:
        table.add_row(f"  weakest: {name}", f"{share:.4f} of {found['classes'][name]['images']:,}")
    table.add_row("forward pass", f"{found['images_per_second']:,.1f} images/s")
    table.add_row("peak memory", f"{found['peak_memory_bytes'] / 1e6:,.0f} MB")
    console.print(f"\n[bold]{split}[/], {found['images']:,} images", highlight=False)
    console.print(table)


def show_resolutions(console: Console, split: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per resolution."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="bold")
    for name in ("resolution", "pixels", "top1", "top5", "calibration error", "images/s", "peak memory"):
        table.add_column(name, justify="right")
    for row in rows:
        top5 = f"{row['top5']:.4f}" if "top5" in row else ""
        table.add_row(
            f"{row['factor']:g}x",
            "{} x {}".format(*row["img_size"]),
            f"{row['top1']:.4f}",
            top5,
            f"{row['calibration_error']:.4f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
        )
    console.print(f"\n[bold]{split}[/] at other resolutions than the trained one", highlight=False)
    console.print(table)
