"""The command line that studies of many trainings share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import Report

_LEAST = {"seeds": 1, "steps": 1, "batch": 1, "jobs": 1, "turns": 0}


def study_parser(
    name: str, description: str, *, seeds: int, steps: int, batch: int, lr: float, turns: int
) -> argparse.ArgumentParser:
    """The options of a study ``python -m benchmarks.<name>``, with these defaults; a study adds its own."""
    p = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description)
    p.add_argument("--output", type=Path, required=True, help="folder of the finished trainings; a rerun goes on")
    p.add_argument("--seeds", type=int, default=seeds, help="trainings of each, seeds 0, 1, ...")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=batch, help="examples per step")
    p.add_argument("--lr", type=float, default=lr)
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for greylag train; repeatable")
    p.add_argument("--jobs", type=int, default=1, help="trainings side by side, a thread each")
    p.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="or the tables alone")
    p.add_argument(
        "--turns", type=int, default=turns, help="measured turns of step times (needs a quiet machine); 0: none"
    )
    p.add_argument("--write", action="store_true", help="write JSON and Markdown into docs/benchmarks")
    return p


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An option's type: some of `known`, by commas."""

    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        if not found or set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: give some of {', '.join(known)}, comma-separated")
        return found

    return parse


def read_options(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """The options; ends the program where a number is too small. From now on processes train on one thread each."""
    options = parser.parse_args(given)
    for name, least in _LEAST.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # inherited by the processes that train
        os.environ[name] = "1"
    return options


def show(report: Report, name: str, write: bool) -> None:
    """Print the report, and write it under the study's and the machine's name."""
    print(report.markdown())
    if write:
        print("written:", *report.write(report.default_path(name)))
