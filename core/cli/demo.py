"""``greylag demo``: the whole way in one command: train, evaluate, show."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

HELP = """
usage: greylag demo [key=value ...]

Trains experiment=vision/digits (or another: experiment=...), evaluates it, and shows its report: in a browser
where there is a screen, else its path. Options are those of greylag train.
"""

EXPERIMENT = "experiment=vision/digits"


def run(arguments: list[str]) -> int:
    """Train, evaluate, show; returns the exit status."""
    from core.cli import evaluate, train
    from core.train.runs import RunFolder, shown_path

    chosen = arguments if any(word.startswith("experiment=") for word in arguments) else [EXPERIMENT, *arguments]
    # What follows may be restarted by name only as training: Lightning's further processes must not demonstrate.
    sys.argv = [sys.argv[0], "train", *chosen]
    finished: list[RunFolder] = []
    if code := train.run(chosen, finished):
        return code
    if not finished:
        return 0
    run = finished[-1]
    print()
    if code := evaluate.run([f"run={run.path}"]):
        return code
    page = next(iter(sorted(run.report.glob("*.html"))), None)
    if page is not None:
        print(f"\nThe report: {shown_path(page)}")
        if _has_screen():
            webbrowser.open(Path(page).resolve().as_uri())
    return 0


def _has_screen() -> bool:
    if not sys.stdout.isatty() or os.environ.get("CI") or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
