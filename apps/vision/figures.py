"""The pictures of the report, one function each: from plain arrays to a matplotlib figure.

One palette for all of them: a deep slate for what is right and a warm orange for what is wrong, which stay
apart for colour-blind readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from apps.vision.metrics import Bins
from core.train.axes import INK, style

RIGHT, WRONG, THIRD = "#1d5c7a", "#d9632a", "#7b8794"


def training_curves(curves: dict[str, tuple[list[float], list[float]]]) -> Figure:
    """Loss on the left, accuracy (and error) on the right, over epochs.

    Args:
        curves: name -> (epochs, values); names end in "loss" or "top1", and begin with the split.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"train": THIRD, "val": RIGHT}
    for name, (epochs, values) in curves.items():
        split, _, metric = name.partition("/")
        axes = left if metric == "loss" else right
        scale = 1.0 if metric == "loss" else 100.0
        label = {"train": "training", "val": "validation"}.get(split, split)
        axes.plot(
            epochs,
            [scale * v for v in values],
            color=colours.get(split, INK),
            linewidth=1.8,
            marker="o" if len(epochs) < 3 else None,
            label=label,
        )
    style(left, "Loss").set_xlabel("epoch", color=INK)
    style(right, "Accuracy (top-1, %)").set_xlabel("epoch", color=INK)
    _zoom(right, [100 * v for name, (_, ys) in curves.items() if name.endswith("top1") for v in ys])
    for axes in (left, right):
        if axes.lines:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _zoom(axes: Axes, values: Sequence[float]) -> None:
    """Cut off the first, steep part of the accuracy, so that the end, where curves differ, can be read."""
    if len(values) >= 10:
        floor = float(np.quantile(values, 0.1))
        axes.set_ylim(max(0.0, floor - 0.15 * (100 - floor)), 100.0 if max(values) > 90 else None)


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """True classes down, predicted ones across; shade by share of the true class, mistakes in orange.

    Args:
        counts: (C, C) whole numbers, rows = true class.
        class_names: C names; the numbers are printed for up to 30 classes.
    """
    matrix = counts.double().numpy()
    size = len(class_names)
    side = min(12.0, max(5.0, 0.42 * size + 1.6))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    diagonal = np.eye(size, dtype=bool)
    picture = np.ones((size, size, 4))
    # Mistakes are few: a square root brings one in a hundred into sight.
    picture[..., :3] = _blend(np.where(diagonal, share, np.sqrt(share)), diagonal)
    axes.imshow(picture)
    if size <= 30:
        for row, column in np.argwhere(matrix > 0):
            strong = (share if row == column else np.sqrt(share))[row, column] > 0.55
            axes.text(
                column,
                row,
                f"{int(matrix[row, column])}",
                ha="center",
                va="center",
                fontsize=9 if size <= 15 else 6,
                color="white" if strong else INK,
            )
        axes.set_xticks(
            range(size),
            class_names,
            rotation=45 if _long(class_names) else 0,
            ha="right" if _long(class_names) else "center",
        )
        axes.set_yticks(range(size), class_names)
    style(axes, "").grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    return figure


def _long(names: Sequence[str]) -> bool:
    return max((len(name) for name in names), default=0) > 3


def _blend(share: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """White at 0, full colour at 1; slate on the diagonal and orange beside it."""
    right, wrong = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (RIGHT, WRONG))
    colour = np.where(diagonal[..., None], right, wrong)
    return 1 - share[..., None] * (1 - colour)


def per_class_accuracy(counts: Tensor, class_names: Sequence[str], limit: int = 30) -> Figure:
    """A bar per class, worst first; at most ``limit`` bars."""
    matrix = counts.double()
    total = matrix.sum(1)
    accuracy = 100 * matrix.diagonal() / total.clamp_min(1)
    order = [int(i) for i in accuracy.argsort() if total[i] > 0][:limit]
    figure = Figure(figsize=(5.2, max(2.4, 0.33 * len(order) + 0.8)), layout="constrained")
    axes = style(figure.subplots())
    values = [float(accuracy[i]) for i in order]
    axes.barh([class_names[i] for i in order], values, color=RIGHT, height=0.62)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    for position, value in enumerate(values):
        axes.text(value + 1, position, f"{value:.1f}", va="center", fontsize=8, color=INK)
    axes.set_xlabel("accuracy, %", color=INK)
    return figure


def picture_grid(items: Sequence[dict[str, Any]], columns: int = 8) -> Figure:
    """Pictures in a grid, each with its prediction; wrong ones are framed in orange and name the truth.

    Args:
        items: dicts of ``image`` (C, H, W) in [0, 1], ``label``, ``predicted`` (names), ``score`` in [0, 1].
        columns: pictures per row.
    """
    rows = max(1, -(-len(items) // columns))
    figure = Figure(figsize=(1.28 * columns, 1.62 * rows), layout="constrained")
    for index, axes in enumerate(np.ravel(figure.subplots(rows, columns, squeeze=False))):
        axes.set_xticks([])
        axes.set_yticks([])
        if index >= len(items):
            axes.set_axis_off()
            continue
        item = items[index]
        correct = item["label"] == item["predicted"]
        axes.imshow(displayable(item["image"]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.spines[:].set_color(RIGHT if correct else WRONG)
        axes.spines[:].set_linewidth(1.5 if correct else 2.5)
        text = f"{item['predicted']}  {100 * item['score']:.0f}%"
        text += "" if correct else f"\ntrue: {item['label']}"
        axes.set_title(text, fontsize=8, color=INK if correct else WRONG, pad=4)
    return figure


def displayable(image: Tensor) -> np.ndarray:
    """(C, H, W) -> what imshow takes: (H, W) for one channel, (H, W, 3) else."""
    image = image.detach().to(torch.float32).clamp(0, 1).cpu()
    if image.shape[0] in (1, 2):
        return image[0].numpy()
    return image[:3].permute(1, 2, 0).numpy()


def reliability(bins: Bins) -> Figure:
    """The reliability diagram: per bin of the answers' probability the share of right ones; below, their number."""
    counts = bins.answers.double().numpy()
    size = len(counts)
    shares = bins.right.double().numpy() / np.maximum(counts, 1)
    middles = (np.arange(size) + 0.5) / size
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(middles, shares, width=0.9 / size, color=RIGHT, label="right answers")
    above.plot([0, 1], [0, 1], color=WRONG, linewidth=1.4, label="as claimed")
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    below.bar(middles, counts, width=0.9 / size, color=THIRD)
    style(above, f"Expected calibration error {100 * float(bins.error):.1f} %")
    above.set_ylabel("share that is right", color=INK)
    above.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    style(below).set_xlabel("probability of the answer", color=INK)
    below.set_ylabel("answers", color=INK)
    return figure
