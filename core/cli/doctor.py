"""``greylag doctor``: what works here, and why the rest does not. A broken package is told, never raised."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from core.errors import UserError, did_you_mean

HELP = """
usage: greylag doctor [--json]

Examines Python and the packages, the devices, the compiled kernel (which is compiled at first use: some seconds),
the operator's backends (each that runs on a CPU computes something and is compared), GREYLAG_* variables,
the apps, the folders and the optional extras.

  ok     works
  --     not here, and nothing needs it
  note   works, with a drawback
  BAD    something that Greylag needs is broken; what to do stands at the end

Exit status: 0 if what Greylag needs works, else 1. --json prints the same for machines.
"""

OK, OFF, NOTE, BAD = "ok", "off", "note", "bad"
_SIGNS = {OK: "ok", OFF: "--", NOTE: "note", BAD: "BAD"}
_COLOURS = {OK: "32", OFF: "2", NOTE: "33", BAD: "1;31"}


class Line(NamedTuple):
    """One thing examined."""

    name: str
    value: str
    state: str = OK
    advice: str | None = None  # one sentence, with the remedy; every bad line has one


def run(arguments: list[str]) -> int:
    """Examine and print; returns 1 if something that Greylag needs is broken, else 0."""
    for word in arguments:
        if word != "--json":
            raise UserError(f"greylag doctor has no option '{word}'{did_you_mean(word, ['--json'])}")
    report = examine()
    problems = problems_of(report)
    if "--json" in arguments:
        sections = {name: [line._asdict() for line in lines] for name, lines in report.items()}
        print(json.dumps({"ok": not problems, "problems": problems, "sections": sections}, indent=2))
    else:
        print(render(report, colour=sys.stdout.isatty()), end="")
    return 1 if problems else 0


def examine() -> dict[str, list[Line]]:
    """Section -> what was found. A section that fails as a whole is one bad line."""
    from core.cli import symptoms

    report: dict[str, list[Line]] = {}
    for name, section in symptoms.SECTIONS.items():
        torch_is_broken = any(line.name == "torch" and line.state == BAD for line in report.get("versions", []))
        if torch_is_broken and name in symptoms.NEED_TORCH:
            report[name] = [Line("not examined", "needs torch", OFF)]
        else:
            report[name] = _guarded(name, section)
    return report


def problems_of(report: dict[str, list[Line]]) -> list[str]:
    """The sentences of what is broken, each once."""
    bad = (line for lines in report.values() for line in lines if line.state == BAD)
    return list(dict.fromkeys(line.advice or f"{line.name}: {line.value}" for line in bad))


def render(report: dict[str, list[Line]], *, colour: bool = False) -> str:
    """The report as text: a line for each thing, then what to do."""

    def paint(text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if colour else text

    width = max((len(line.name) for lines in report.values() for line in lines), default=0)
    out: list[str] = []
    for section, lines in report.items():
        out.append(f"{chr(10) if out else ''}{paint(section, '1')}")
        for line in lines:
            out.append(
                f"  {paint(f'{_SIGNS[line.state]:<4}', _COLOURS[line.state])}  {line.name:<{width}}  {line.value}"
            )
            if line.advice and line.state != BAD:
                out.append(f"{'':<{width + 10}}{paint(line.advice, '2')}")
    problems = problems_of(report)
    out.append("")
    if problems:
        out.append(paint(f"{len(problems)} to mend:" if len(problems) > 1 else "To mend:", _COLOURS[BAD]))
        out += [f"  {problem}" for problem in problems]
    else:
        out.append("What Greylag needs works here.")
    return "\n".join(line.rstrip() for line in out) + "\n"


def _guarded(name: str, section: Callable[[], list[Line]]) -> list[Line]:
    from core.cli.packages import first_line

    try:
        with _silence():
            return section()
    except UserError as error:
        return [Line(name, "could not be examined", BAD, str(error))]
    except (Exception, SystemExit) as error:  # noqa: BLE001  a doctor must not fall ill
        remedy = f"pip install {error.name}" if isinstance(error, ModuleNotFoundError) else "please report this"
        sentence = f"The {name} could not be examined ({first_line(error)}): {remedy}"
        return [Line(name, "could not be examined", BAD, sentence)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Packages chat while they are imported; OMP's and CUDA's own complaints go to the process's stderr still."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
