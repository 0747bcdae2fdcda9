"""The report of a run: one HTML file that needs nothing beside it, and its pictures as PNG files.

``write_report`` takes plain facts, so that a test, a notebook or another trainer can write one too.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from apps.vision import figures
from apps.vision.metrics import bin_answers
from core.train.page import CSS, table


@dataclass(frozen=True)
class ReportFacts:
    """What a report tells.

    Attributes:
        title: headline, e.g. "digits".
        subtitle: one line: the model and the data.
        class_names: C names.
        probabilities: (N, C), the model's answers on the test images.
        targets: (N,), the true classes.
        images: (N, C', H, W) in [0, 1], or a callable index -> (C', H, W), as people should see them.
        headline: (number, caption) pairs, most important first.
        history: per epoch, "epoch" and metrics such as "train/loss", "val/top1".
        model: rows of the model's table.
        run: rows of the run's table (seed, device, versions).
        config: the resolved configuration as text.
        commands: (what it does, command) pairs.
        split: which images the numbers stand on.
    """

    title: str
    subtitle: str
    class_names: Sequence[str]
    probabilities: Tensor
    targets: Tensor
    images: Any
    headline: Sequence[tuple[str, str]] = ()
    history: Sequence[dict[str, Any]] = ()
    model: Sequence[tuple[str, str]] = ()
    run: Sequence[tuple[str, str]] = ()
    config: str = ""
    commands: Sequence[tuple[str, str]] = ()
    split: str = "test"
    right_samples: int = 16
    wrong_samples: int = 16


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write ``index.html`` and its PNG files into ``folder`` (made if missing); returns the HTML file."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _save(figure, folder / f"{name}.png") for name, figure in _figures(facts).items()}
    page = folder / "index.html"
    page.write_text(_page(facts, pictures), encoding="utf-8")
    return page


def curves_of(history: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """The curves worth drawing: loss and top-1 of training and validation, name -> (epochs, values)."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name in ("train/loss", "val/loss", "train/top1", "val/top1"):
        # Lightning appends "_epoch" to what is logged by step as well.
        values = [row.get(name, row.get(f"{name}_epoch")) for row in history]
        points = [
            (1.0 + float(row.get("epoch", number)), float(value))
            for number, (row, value) in enumerate(zip(history, values, strict=True))
            if value is not None
        ]
        if points:
            curves[name] = ([x for x, _ in points], [y for _, y in points])
    return curves


def confusion_counts(facts: ReportFacts) -> Tensor:
    """(C, C) counts, rows = true class, columns = predicted."""
    classes = len(facts.class_names)
    flat = facts.targets * classes + facts.probabilities.argmax(1)
    return torch.bincount(flat, minlength=classes * classes).view(classes, classes)


def right_ones(facts: ReportFacts) -> list[int]:
    """Correctly classified images, evenly spread over the set (which is in class order for folders)."""
    right = (facts.probabilities.argmax(1) == facts.targets).nonzero().flatten().tolist()
    step = max(1, len(right) // facts.right_samples)
    return right[::step][: facts.right_samples]


def worst_mistakes(facts: ReportFacts) -> list[int]:
    """Wrongly classified images, the surest mistake first."""
    score, predicted = facts.probabilities.max(1)
    wrong = (predicted != facts.targets).nonzero().flatten()
    return wrong[score[wrong].argsort(descending=True, stable=True)].tolist()[: facts.wrong_samples]


def least_certain(facts: ReportFacts) -> list[int]:
    """Correctly classified images with the smallest top probability: those that nearly went wrong."""
    score, predicted = facts.probabilities.max(1)
    right = (predicted == facts.targets).nonzero().flatten()
    return right[score[right].argsort(stable=True)].tolist()[: facts.wrong_samples // 2]


def hard_ones(facts: ReportFacts) -> list[int]:
    """The worst mistakes; where they do not fill a row, the least certain right answers after them."""
    wrong = worst_mistakes(facts)
    room = facts.wrong_samples // 2 - len(wrong)
    return wrong + (least_certain(facts)[:room] if room > 0 else [])


def _figures(facts: ReportFacts) -> dict[str, Figure]:
    result: dict[str, Figure] = {}
    if curves := curves_of(facts.history):
        result["curves"] = figures.training_curves(curves)
    if len(facts.class_names) <= 100:
        result["confusion"] = figures.confusion_matrix(confusion_counts(facts), facts.class_names)
    result["per_class"] = figures.per_class_accuracy(confusion_counts(facts), facts.class_names)
    result["reliability"] = figures.reliability(bin_answers(facts.probabilities, facts.targets))
    for name, chosen in (("right", right_ones(facts)), ("mistakes", hard_ones(facts))):
        if chosen:
            result[name] = figures.picture_grid([_item(facts, i) for i in chosen])
    return result


def _item(facts: ReportFacts, index: int) -> dict[str, Any]:
    score, predicted = facts.probabilities[index].max(0)
    return {
        "image": facts.images(index) if callable(facts.images) else facts.images[index],
        "label": facts.class_names[int(facts.targets[index])],
        "predicted": facts.class_names[int(predicted)],
        "score": float(score),
    }


def _save(figure: Figure, path: Path) -> str:
    """Save a figure as PNG; returns it as a data address for the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _page(facts: ReportFacts, pictures: dict[str, str]) -> str:
    text = html.escape
    mistakes = int((facts.probabilities.argmax(1) != facts.targets).sum())
    total = len(facts.targets)
    cards = "".join(
        f'<div class="card"><div class="number">{text(number)}</div><div class="caption">{text(caption)}</div></div>'
        for number, caption in facts.headline
    )
    captions = {
        "curves": (
            "Training",
            "Loss and accuracy by epoch; test images play no part here. Training images are augmented and their "
            "targets smoothed, so that training may look worse than validation.",
        ),
        "confusion": (
            "Confusion matrix",
            f"True classes down, predictions across, {total:,} {facts.split} images. Mistakes are orange; "
            "their shade grows with the square root of their share, so that rare ones show.",
        ),
        "per_class": ("Accuracy by class", "Weakest class first."),
        "reliability": (
            "Calibration",
            "How often answers of a given probability are right (bars), beside what they claim (line); below, how many "
            "there are. Bars under the line: the model is too sure.",
        ),
        "right": ("Right answers", "An even sample of the correctly classified images, with the model's probability."),
        "mistakes": ("Worst mistakes" if mistakes else "Least certain answers", _about_mistakes(mistakes, facts)),
    }
    blocks = {
        name: f'<section class="{name}"><h2>{text(captions[name][0])}</h2><p>{text(captions[name][1])}</p>'
        f'<img alt="{text(captions[name][0])}" src="{source}"></section>'
        for name, source in pictures.items()
    }
    side_by_side = '<div class="pair">' + blocks.pop("confusion", "") + blocks.pop("per_class", "") + "</div>"
    order = [
        blocks.get("curves", ""),
        side_by_side,
        blocks.get("reliability", ""),
        blocks.get("right", ""),
        blocks.get("mistakes", ""),
    ]
    commands = "".join(f"<p>{text(what)}</p><pre>{text(command)}</pre>" for what, command in facts.commands)
    config = (
        f"<details><summary>Configuration</summary><pre>{text(facts.config)}</pre></details>" if facts.config else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(facts.title)} - Greylag report</title><style>{CSS}</style></head><body><main>
<header><div class="brand">Greylag &middot; vision</div>
<h1>{text(facts.title)}</h1><p>{text(facts.subtitle)}</p></header>
<div class="cards">{cards}</div>
{"".join(order)}
<section><h2>Facts</h2>
<div class="pair">{table("Model", facts.model)}{table("Run", facts.run)}</div>{config}</section>
<section><h2>Go on</h2>{commands}</section>
</main></body></html>
"""


def _about_mistakes(mistakes: int, facts: ReportFacts) -> str:
    if not mistakes:
        return "No image is classified wrongly; here the ones the model was least sure of."
    verb = "is" if mistakes == 1 else "are"
    few = mistakes < facts.wrong_samples // 2
    rest = ", then right answers it was least sure of" if few else ""
    return f"{mistakes:,} of {len(facts.targets):,} {verb} wrong; the ones the model was surest of come first{rest}."
