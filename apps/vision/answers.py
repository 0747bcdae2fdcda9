"""Answers out: what a prediction is, and the forms that it is printed or written in."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.errors import UserError

FORMATS = ("table", "jsonl", "csv")


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: name of the most probable class.
        index: its number.
        score: its probability, in [0, 1].
        top: the k most probable (label, probability) pairs, best first.
    """

    label: str
    index: int
    score: float
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON lines."""
        return {
            "label": self.label,
            "index": self.index,
            "score": round(self.score, 6),
            "top": [{"label": label, "score": round(score, 6)} for label, score in self.top],
        }


Answer = Prediction | str
"""A prediction, or the sentence that says why there is none."""


def destination(output: Path | None, form: str | None) -> tuple[str, Path | None]:
    """The form of the answers and the file they go to; None: standard output.

    Args:
        output: a file ending in .jsonl or .csv, a folder, or None.
        form: of :data:`FORMATS`, or None for the usual one.

    Raises:
        UserError: another ending, another form, or the two disagree.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"format={form}: expected one of {', '.join(FORMATS)}.")
    if output is None:
        return form or "table", None
    if form == "table":
        raise UserError("format=table is for reading on a screen; a file gets jsonl or csv.")
    ending = output.suffix.removeprefix(".")
    if not ending or output.is_dir():
        return form or "jsonl", output / f"predictions.{form or 'jsonl'}"
    if ending not in FORMATS[1:]:
        raise UserError(f"output='{output}': expected a file ending in .jsonl or .csv, or a folder.")
    if form not in (None, ending):
        raise UserError(f"output='{output}' and format={form} disagree.")
    return ending, output


@contextmanager
def writer(form: str, target: Path | None, top_k: int) -> Iterator[Callable[[Path, Answer], None]]:
    """A function write(path, answer) for the wanted form. Lines are out as soon as they are known, a table at the end.

    Args:
        form: of :data:`FORMATS`.
        target: the file, its folder made if missing; None: standard output.
        top_k: most classes that an answer names.
    """
    if form == "table":
        table = Table("picture", "class", "probability", f"next of the top {top_k}", box=None, header_style="bold")
        yield lambda path, answer: table.add_row(*_row(path, answer))
        Console().print(table)
        return
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(sys.stdout) if target is None else target.open("w", encoding="utf-8", newline="") as file:
        write = _csv_writer(file, top_k) if form == "csv" else _json_writer(file)

        def write_now(path: Path, answer: Answer) -> None:
            write(path, answer)
            file.flush()

        yield write_now


def _row(path: Path, answer: Answer) -> Sequence[str]:
    if isinstance(answer, str):
        return escape(str(path)), "[red]unreadable[/]", "", escape(answer)
    rest = ", ".join(f"{label} {100 * score:.1f}%" for label, score in answer.top[1:])
    return escape(str(path)), f"[bold]{escape(answer.label)}[/]", f"{100 * answer.score:.1f}%", escape(rest)


def _json_writer(file: Any) -> Callable[[Path, Answer], None]:
    def write(path: Path, answer: Answer) -> None:
        body = {"error": answer} if isinstance(answer, str) else answer.to_dict()
        file.write(json.dumps({"file": str(path), **body}, ensure_ascii=False) + "\n")

    return write


def _csv_writer(file: Any, top_k: int) -> Callable[[Path, Answer], None]:
    rows = csv.writer(file)
    ranks = [f"{kind}_{rank}" for rank in range(1, top_k + 1) for kind in ("label", "score")]
    rows.writerow(["file", *ranks, "error"])

    def write(path: Path, answer: Answer) -> None:
        top = [] if isinstance(answer, str) else [x for label, score in answer.top for x in (label, f"{score:.6f}")]
        rows.writerow([path, *top, *[""] * (2 * top_k - len(top)), answer if isinstance(answer, str) else ""])

    return write
