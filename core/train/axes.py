"""The look of every app's pictures: ink, grid, quiet axes."""

from __future__ import annotations

from matplotlib.axes import Axes

INK, GRID = "#1f2933", "#e4e7eb"


def style(axes: Axes, title: str = "") -> Axes:
    """Quiet axes: no box, light grid, a left-aligned title."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    return axes
