"""What every benchmark shares: the machine, fair timings, and a report as a table and as JSON.

Three rules are built in. Contestants are timed side by side, in turns, so that a machine that slows down slows
all of them. A figure is a median with its spread. A contestant whose output is wrong gets no speed.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
WRONG = "no speed: output off"


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran. `threads` is what PyTorch was allowed to use, `cores` what the process may run on."""

    cpu: str
    cores: int
    threads: int
    memory_gib: float
    system: str
    gpu: str | None

    @classmethod
    def here(cls) -> Machine:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        return cls(_cpu_name(), _cores(), torch.get_num_threads(), _memory_gib(), system, gpu)

    @property
    def slug(self) -> str:
        """A name for files: letters, digits and dashes."""
        name = self.gpu or f"{self.cpu} {self.cores} cores"
        name = re.sub(r"\((r|tm)\)|\bcpu\b|@ *[0-9.]+ghz", " ", name.lower())
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-")

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.cores} cores, {self.threads} threads, {self.memory_gib:g} GiB{gpu}; {self.system}"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return math.nan


def versions(*packages: str) -> dict[str, str]:
    """Installed distribution -> version; "not installed" where there is none."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ------------------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one number per turn."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def low(self) -> float:
        return min(self.turns)

    @property
    def high(self) -> float:
        return max(self.turns)

    def __str__(self) -> str:
        return f"{seconds(self.median)} ({seconds(self.low)} to {seconds(self.high)})"


def seconds(value: float) -> str:
    """A duration with three digits in the unit that suits it: "3.21 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:#.3g} {unit}".replace(". ", " ")
    return f"{value * 1e6:#.3g} µs".replace(". ", " ")


def side_by_side(
    contestants: Mapping[str, Callable[[], object]],
    turns: int = 7,
    least: float = 0.05,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time callables in turns: a, b, c, a, b, c, ... after one unmeasured call of each.

    Args:
        contestants: name -> call without arguments.
        turns: measured turns of each.
        least: seconds that a turn lasts at least; quick calls are repeated within it and averaged.
        synchronize: waits for the device, such as ``torch.cuda.synchronize``; called before each look at the clock.

    Raises:
        ValueError: `turns` is below 1.
    """
    if turns < 1:
        raise ValueError(f"turns must be at least 1, got {turns}")
    wait = synchronize or (lambda: None)
    for call in contestants.values():
        call()
    wait()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, call in contestants.items():
            taken[name].append(_turn(call, least, wait))
    return {name: Timing(tuple(times)) for name, times in taken.items()}


def _turn(call: Callable[[], object], least: float, wait: Callable[[], None]) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        call()
        wait()
        calls += 1
        spent = time.perf_counter() - start
        if spent >= least:
            return spent / calls


# -------------------------------------------------------------------------------------------------------- report


@dataclass
class Table:
    """Columns are named once; a row gives a value for each, None where there is nothing to say."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)

    def add(self, *values: Any) -> None:
        assert len(values) == len(self.columns), f"{len(values)} values for {len(self.columns)} columns"
        self.rows.append(values)

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([_cell(x) for x in row] for row in self.rows)]
        return f"### {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows],
        }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, Timing):
        return {"median_s": value.median, "low_s": value.low, "high_s": value.high, "turns": len(value.turns)}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


@dataclass
class Report:
    """A benchmark's result: what was run, where, with which versions, and the tables."""

    name: str
    command: str
    settings: dict[str, Any]
    versions: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: Machine = field(default_factory=Machine.here)
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))

    def markdown(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        head = f"# {self.name}\n\n`{self.command}`\n\n{self.machine}. {packages}. {self.date}."
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(filter(None, [head, *(table.markdown() for table in self.tables), notes])) + "\n"

    def json(self) -> dict[str, Any]:
        return {
            "benchmark": self.name, "command": self.command, "date": self.date, "machine": asdict(self.machine),
            "versions": self.versions, "settings": self.settings,
            "tables": [table.json() for table in self.tables], "notes": self.notes,
        }  # fmt: skip

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write `path` as JSON and the same as Markdown beside it; returns both paths."""
        path = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        table = path.with_suffix(".md")
        table.write_text(self.markdown(), encoding="utf-8")
        return path, table

    def default_path(self, benchmark: str) -> Path:
        """docs/benchmarks/<benchmark>-<machine>.json in the repository."""
        return DOCS / f"{benchmark}-{self.machine.slug}.json"
