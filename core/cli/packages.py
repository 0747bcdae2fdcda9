"""What Greylag's own metadata asks of Python packages, and what is installed. Imports nothing heavy."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import core

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "greylag"
MODULES = {
    "flash-linear-attention": "fla",
    "hydra-core": "hydra",
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "import-linter": "importlinter",
    "pytest-xdist": "xdist",
}
"""Distributions whose module has another name; the others' is their own with underscores."""


class Declared(NamedTuple):
    """What pyproject.toml declares, without what other platforms need."""

    python: str  # a specifier such as ">=3.11"
    required: list[Requirement]
    extras: dict[str, list[Requirement]]


class Installed(NamedTuple):
    """One requirement and what there is of it."""

    version: str | None  # None: not installed
    problem: str | None  # one sentence with the remedy


def declared() -> Declared:
    """From the clone's pyproject.toml, which is what `pip install -e` would read; in a wheel from its metadata."""
    from packaging.requirements import Requirement

    file = Path(core.__file__).resolve().parents[1] / "pyproject.toml"
    if file.is_file() and (project := tomllib.loads(file.read_text(encoding="utf-8"))["project"])["name"] == NAME:
        python, plain = project["requires-python"], project["dependencies"]
        extras = {name: list(lines) for name, lines in project.get("optional-dependencies", {}).items()}
    else:
        metadata = importlib.metadata.metadata(NAME)
        python = str(metadata["Requires-Python"])
        lines = importlib.metadata.requires(NAME) or []
        of = {line: re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line) for line in lines}
        plain = [line for line, extra in of.items() if extra is None]
        extras: dict[str, list[str]] = {}
        for line, extra in of.items():
            if extra is not None:
                extras.setdefault(extra[1], []).append(line)

    def here(lines: list[str], extra: str = "") -> list[Requirement]:
        wanted = (Requirement(line) for line in lines)
        kept = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": extra})]
        return [w for w in kept if canonical(w.name) != NAME]  # extras that name other extras

    return Declared(python, here(plain), {name: here(lines, name) for name, lines in extras.items()})


def canonical(name: str) -> str:
    """A distribution's name as the index writes it: open_clip_torch is open-clip-torch."""
    return re.sub(r"[-_.]+", "-", name).lower()


def module_of(name: str) -> str:
    """The module that the distribution `name` brings."""
    return MODULES.get(canonical(name), canonical(name).replace("-", "_"))


def pip_command(requirements: list[Requirement]) -> str:
    """The command that installs exactly these; Greylag itself is on no index."""
    return "pip install " + " ".join(f"'{wanted.name}{wanted.specifier}'" for wanted in requirements)


def installed(wanted: Requirement) -> Installed:
    """Whether a requirement is met, by what pip recorded; nothing is imported."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Installed(None, f"{wanted.name} is not installed: {pip_command([wanted])}")
    # pre-releases count: a nightly torch within the range is the user's own choice
    if not wanted.specifier.contains(version, prereleases=True):
        return Installed(version, f"{wanted.name} {version} is outside {wanted.specifier}: {pip_command([wanted])}")
    return Installed(version, None)


def import_problem(wanted: Requirement) -> str | None:
    """None if the package's module can be imported, else one sentence. The import's own errors never escape."""
    module = module_of(wanted.name)
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a broken package raises is what is asked for
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != module:
            return f"{wanted.name} needs the module '{error.name}', which is missing: pip install it."
        said = first_line(error)
        again = pip_command([wanted]).replace("install", "install --force-reinstall", 1)
        return f"{wanted.name} is installed but 'import {module}' fails ({said}): {again}"
    return None


def first_line(error: BaseException) -> str:
    """What an error says, in at most one line of 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
