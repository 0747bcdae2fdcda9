"""The facts of a run's report, gathered from the task, its data and its answers."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.vision.metrics import bin_answers
from apps.vision.model import count_parameters
from apps.vision.report import ReportFacts
from apps.vision.transforms import InputSpec, denormalise
from core.train.data import DataModule
from core.train.runs import shown_path


def gather_facts(
    run: Path,
    model: nn.Module,
    options: dict[str, Any],
    device: torch.device,
    data: DataModule,
    probabilities: Tensor,
    targets: Tensor,
    history: list[dict[str, Any]],
) -> ReportFacts:
    """What :func:`apps.vision.report.write_report` tells.

    Args:
        run: the run folder.
        model: of the run.
        options: the task's hyper-parameters.
        device: the model's.
        data: set up; its test pictures are shown.
        probabilities: (N, C), the answers on them.
        targets: (N,).
        history: see :meth:`core.train.task.Task.write_report`.
    """
    facts, spec = options["data"], InputSpec.from_dict(options["data"])
    config = run / "config.yaml"
    return ReportFacts(
        title=f"{facts['dataset']}",
        subtitle=f"{_model_title(model, options)}, trained on {facts['sizes']['train']:,} images "
        f"and tested on {len(targets):,} that it had never seen.",
        class_names=facts["class_names"],
        probabilities=probabilities,
        targets=targets,
        images=lambda index: denormalise(data.test_set[index][0], spec),
        headline=_headline(model, probabilities, targets, history),
        history=history,
        model=_model_rows(model, options, spec),
        run=_run_rows(options, data.seed, device),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        commands=_commands(run),
        split=facts.get("test_split", "test"),
    )


def _headline(
    model: nn.Module, probabilities: Tensor, targets: Tensor, history: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    correct = probabilities.argmax(1) == targets
    top5 = (probabilities.topk(min(5, probabilities.shape[1])).indices == targets[:, None]).any(1)
    epochs = 1 + max((int(row["epoch"]) for row in history if row.get("epoch") is not None), default=-1)
    headline = [
        (f"{100 * correct.float().mean():.2f}%", "test accuracy (top-1)"),
        (f"{int((~correct).sum()):,} of {len(targets):,}", "test images wrong"),
        (f"{100 * bin_answers(probabilities, targets).error:.1f}%", "calibration error (ECE, 15 bins)"),
        (f"{count_parameters(model):,}", "parameters"),
    ]
    if probabilities.shape[1] > 5:
        headline.insert(1, (f"{100 * top5.float().mean():.2f}%", "test accuracy (top-5)"))
    if epochs:
        headline.append((f"{epochs}", "epochs" + _duration(history)))
    return headline


def _model_title(model: nn.Module, options: dict[str, Any]) -> str:
    if title := getattr(model, "title", None):
        return str(title)
    mixer = options["model"].get("mixer", "rwkv7")
    return {"rwkv7": "VRWKV-7", "attention": "ViT (the attention twin)"}.get(str(mixer), f"VRWKV with {mixer}")


def _model_rows(model: nn.Module, options: dict[str, Any], spec: InputSpec) -> list[tuple[str, str]]:
    shown = {key: value for key, value in options["model"].items() if value not in (None, "")}
    rows = [(key.replace("_", " "), str(value)) for key, value in shown.items()]
    height, width = spec.img_size
    grid = getattr(model, "grid_size", None)
    tokens = f", {grid[0]} x {grid[1]} tokens" if grid else ""
    return [
        ("parameters", f"{count_parameters(model):,}"),
        ("input", f"{spec.in_chans} x {height} x {width} pixels{tokens}"),
        *rows,
    ]


def _run_rows(options: dict[str, Any], seed: int, device: torch.device) -> list[tuple[str, str]]:
    facts = options["data"]
    sizes = facts["sizes"]
    kind = {"ce": "cross-entropy", "bce": "binary cross-entropy"}[options["loss"]]
    loss = f"{kind}, label smoothing {options['label_smoothing']:g}"
    loss += "".join(f", {key} {options[key]}" for key in ("mixup", "cutmix", "cutmix_minmax") if options[key])
    optim = {k: v for k, v in options["optim"].items() if v is not None}
    return [
        ("data", f"{facts['dataset']}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test"),
        ("seed", f"{seed} (of the run), {facts['split_seed']} (of the split into train, val and test)"),
        ("loss", loss),
        ("optimiser", ", ".join(f"{k}={v}" for k, v in optim.items())),
        ("device", f"{device} ({platform.processor() or platform.machine()})"),
        ("versions", f"Python {platform.python_version()}, torch {torch.__version__}"),
    ]


def _duration(history: list[dict[str, Any]]) -> str:
    """Such as " in 70 seconds", by the last row's clock; nothing if the history kept none."""
    seconds = next((float(row["seconds"]) for row in reversed(history) if row.get("seconds")), 0.0)
    if not seconds:
        return ""
    if seconds < 100:
        return f" in {seconds:.0f} seconds"
    return f" in {seconds / 60:.1f} minutes" if seconds < 6000 else f" in {seconds / 3600:.1f} hours"


def _commands(run: Path) -> list[tuple[str, str]]:
    """What to do next, as commands that can be pasted."""
    folder = shown_path(run)
    return [
        ("Classify your own pictures:", f"greylag predict run={folder} input=photo.jpg"),
        (
            "The same in Python:",
            "from apps.vision import VisionPipeline\n"
            f'pipe = VisionPipeline.from_pretrained("{folder}/model")\nprint(pipe("photo.jpg"))',
        ),
        ("Evaluate again:", f"greylag evaluate run={folder}"),
        ("Look at the curves:", f"tensorboard --logdir {folder}/log"),
    ]
