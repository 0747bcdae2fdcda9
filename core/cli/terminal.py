"""The console that commands print on."""

from __future__ import annotations

import shutil

from rich.console import Console

from core.train.runs import first_process


def console() -> Console:
    """rich's console; in files and pipes wide enough that paths stay on one line. Silent on other processes."""
    quiet = not first_process()
    plain = Console(quiet=quiet)
    return plain if plain.is_terminal else Console(quiet=quiet, width=max(140, shutil.get_terminal_size().columns))
