"""Two tables: what is about to be trained, and, at the end, what came of it and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from core.layers import TimeMix
from core.train.runs import RunFolder, shown_path


def parameter_count(module: nn.Module, *, trainable: bool = False) -> int:
    """Numbers to be learned, or all stored ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def state_bytes(module: nn.Module) -> int:
    """Bytes of the recurrent state of one sequence, all layers: float32, heads x value size x key size each.

    It does not grow with the sequence. 0 where there is no recurrence (attention keeps no such state).
    """
    return 4 * sum(m.output.in_features * m.head_dim for m in module.modules() if isinstance(m, TimeMix))


def model_table(model: nn.Module) -> Table:
    """The parts of a model by parameters, its size, the size of its state."""
    table = Table(title=type(model).__name__, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, part in model.named_children():
        if count := parameter_count(part):
            table.add_row(f"{name} [dim]{type(part).__name__}[/]", f"{count:,}")
    if own := sum(p.numel() for p in model.parameters(recurse=False)):
        table.add_row("[dim]own[/]", f"{own:,}")
    table.add_section()
    table.add_row("[bold]all[/]", f"[bold]{parameter_count(model):,}[/]")
    if frozen := parameter_count(model) - parameter_count(model, trainable=True):
        table.add_row("of these frozen", f"{frozen:,}")
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    table.add_row("weights", megabytes(size))
    if state := state_bytes(model):
        table.add_row("state per sequence [dim]of any length[/]", megabytes(state))
    return table


def print_start(console: Console, config: dict[str, Any], run: RunFolder, model: nn.Module, facts: str) -> None:
    """The head of a training's output."""
    console.print(f"[bold]greylag[/] {config['app']}/{config['name']}  [dim]{facts}[/]", highlight=False)
    console.print(f"run folder {run.shown}\n", highlight=False, soft_wrap=True)
    console.print(model_table(model))
    console.print()


def print_end(console: Console, run: RunFolder, metrics: dict[str, float], report: Path | None, took: str) -> None:
    """The last thing one reads: numbers, places, commands."""
    console.print(f"\n[bold]Trained in {took}[/]", highlight=False)
    console.print(metrics_table(metrics))
    places = Table(box=None, show_header=False, pad_edge=False)
    places.add_column(style="dim")
    places.add_column(overflow="fold", no_wrap=False)
    places.add_row("model", shown_path(run.model))
    if report is not None:
        places.add_row("report", shown_path(report))
    places.add_row("metrics", shown_path(run.metrics))
    places.add_row("curves", f"tensorboard --logdir {shown_path(run.log)}")
    places.add_row("", "")
    places.add_row("predict", f"greylag predict run={run.shown} input=...")
    places.add_row("evaluate", f"greylag evaluate run={run.shown}")
    places.add_row("export", f"greylag export run={run.shown} to=folder")
    console.print(places)


def metrics_table(metrics: dict[str, float]) -> Table:
    """Metrics by name, one column per split."""
    splits = [split for split in ("train", "val", "test") if any(name.startswith(f"{split}/") for name in metrics)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    for split in splits:
        table.add_column(split, justify="right")
    names = dict.fromkeys(name.partition("/")[2] for name in metrics if name.partition("/")[0] in splits)
    for name in names:
        values = (metrics.get(f"{split}/{name}") for split in splits)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in values))
    return table


def megabytes(size: int) -> str:
    """A size in bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
