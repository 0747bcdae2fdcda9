"""The command line: ``greylag train|evaluate|predict|export|list|demo``."""

from __future__ import annotations

from core.cli.command import main

__all__ = ["main"]
