"""What studies of many trainings share: the file of finished ones, doing the rest in processes, equal parameters."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from core.atomic import replacing
from core.errors import UserError
from core.train.runs import revision

if TYPE_CHECKING:  # the processes of a study need not wait for torch until they train
    from benchmarks.vision_training import Outcome

LINES = "trainings.jsonl"


class Shared(Protocol):
    """What all trainings of a study have in common."""

    def plain(self) -> dict[str, Any]:
        """What must be the same for lines to stand in one table."""
        ...


Key = TypeVar("Key", bound=NamedTuple)
Result = TypeVar("Result", bound="Outcome")
Setting = TypeVar("Setting", bound=Shared)


class Lines(Generic[Setting, Key, Result]):
    """The finished trainings in a folder, one JSON object a line.

    Args:
        folder: of the study; made with the first line.
        setting: what all its trainings share.
        key, outcome: the classes of what names a training and of what it gave.

    Raises:
        UserError: a line made with other settings, or one that is no training.
    """

    def __init__(self, folder: Path, setting: Setting, key: Callable[..., Key], outcome: Callable[..., Result]) -> None:
        self.file, self.setting = folder / LINES, setting
        self.outcomes: dict[Key, Result] = {}
        self._read(key, outcome)

    def _read(self, key: Callable[..., Key], outcome: Callable[..., Result]) -> None:
        if not self.file.is_file():
            return
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                setting, name, result = row["setting"], key(**row["key"]), outcome(**row["outcome"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"Line {number} of '{self.file}' is no finished training ({error}).") from None
            for option, value in self.setting.plain().items():
                if setting.get(option) != value:
                    raise UserError(
                        f"'{self.file}' holds trainings with {option}={setting.get(option)}, now it is {value}: "
                        "give the same or another --output."
                    )
            self.outcomes[name] = result

    def add(self, key: Key, outcome: Result) -> None:
        """Keep one more, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "key": key._asdict(), "outcome": asdict(outcome), "setting": self.setting.plain(), "code": revision(),
            "torch": version("torch"),
        }  # fmt: skip
        before = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        with replacing(self.file) as new:
            new.write_text(f"{before}{json.dumps(row)}\n", encoding="utf-8")
        self.outcomes[key] = outcome


# ------------------------------------------------------------------------------------------------ doing what is missing


def run(
    keys: Sequence[Key], lines: Lines[Setting, Key, Result], jobs: int, one: Callable[[Setting, Key], Result]
) -> list[str]:
    """Train what is missing, `jobs` at a time in processes of their own; returns what went wrong, a sentence each.

    Args:
        keys: the trainings that the study wants, in the order in which they are begun.
        lines: where finished ones are kept.
        jobs: 1: in this process, one after another.
        one: the training itself, a function that another process can import.
    """
    missing = [key for key in keys if key not in lines.outcomes]
    print(f"{len(keys) - len(missing)} of {len(keys)} trainings are there", file=sys.stderr, flush=True)
    wrong = []
    for key, outcome in _trained(missing, lines.setting, jobs, one):
        try:
            result = outcome()
        except (UserError, ArithmeticError, RuntimeError) as error:
            wrong.append(f"{key}: {error}")
            print(wrong[-1], file=sys.stderr, flush=True)
            continue
        lines.add(key, result)
        print(
            f"{key}: val {result.val:.4f}, test {result.test:.4f}, loss {result.loss:.3f}, "
            f"{result.steps} steps in {result.seconds:.0f} s; {len(lines.outcomes)} done",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return wrong


def _trained(
    keys: list[Key], setting: Setting, jobs: int, one: Callable[[Setting, Key], Result]
) -> Iterator[tuple[Key, Callable[[], Result]]]:
    if jobs == 1 or len(keys) < 2:
        for key in keys:
            yield key, functools.partial(one, setting, key)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        futures: dict[Future[Result], Key] = {pool.submit(one, setting, key): key for key in keys}
        for future in as_completed(futures):
            yield futures[future], future.result


def _end_with_parent() -> None:
    """A killed parent must not leave its trainings running."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------------------------------------------- equal parameters


def matching_width(parameters: Callable[[int], int], wanted: int, start: int, step: int = 4) -> int:
    """The width, `start` plus a multiple of `step`, whose number of parameters is nearest to `wanted`.

    Args:
        parameters: their number by width; as of every layer's hidden units, a line.
    """
    here = parameters(start)
    return start + step * round((wanted - here) / (parameters(start + step) - here))
