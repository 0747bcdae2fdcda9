"""The house stays tidy: rooms furnished alike, short files, declared dependencies, pins for all of them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APPS = sorted(path.parent.name for path in (ROOT / "apps").glob("*/__init__.py"))
CODE = [path for folder in ("core", "apps", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
ROOM = ("README.md", "model.py", "task.py", "data.py", "pipeline.py")
LONGEST = 500


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("app", APPS)
def test_every_app_has_the_same_rooms(app: str) -> None:
    configs = ("app/{}.yaml", "model/{}", "data/{}/fake.yaml", "experiment/{}")
    rooms = [ROOT / "apps" / app / name for name in ROOM]
    rooms += [ROOT / "configs" / name.format(app) for name in configs] + [ROOT / "tests" / app]
    assert not [named(path) for path in rooms if not path.exists()]


def test_every_app_has_its_own_tree_of_configs() -> None:
    assert sorted(path.stem for path in (ROOT / "configs" / "app").glob("*.yaml")) == APPS


@pytest.mark.parametrize("path", [*CODE, *sorted((ROOT / "tests").rglob("*.py"))], ids=named)
def test_file_is_short_or_says_why(path: Path) -> None:
    text = path.read_text()
    if len(text.splitlines()) > LONGEST:
        assert f"Over {LONGEST} lines:" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("path", CODE, ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def imports(path: Path) -> Iterator[str]:
    """Top-level names of all modules that the file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def distribution_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", name.strip(), maxsplit=1)[0]).lower()


def declared(without: str | None = None) -> set[str]:
    """Names of all dependencies, or of all but those of one extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (requirements for name, requirements in project["optional-dependencies"].items() if name != without)
    lists = [project["dependencies"], *extras]
    return {distribution_name(requirement) for requirements in lists for requirement in requirements}


def test_imports_are_declared_dependencies() -> None:
    """What we import by name is ours to declare, also where another package happens to bring it along."""
    providers = packages_distributions()
    ours = {"core", "apps", "benchmarks", "triton"}  # PyTorch's GPU builds bring their own Triton, under several names
    undeclared = {
        f"{module} in {named(path)}"
        for path in CODE
        for module in imports(path)
        if module not in ours | sys.stdlib_module_names
        and not {distribution_name(name) for name in providers.get(module, [module])} & declared()
    }
    assert not undeclared


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", pin) for pin in pins)
    # The benchmarks' rivals are in nobody's way: their versions stand in the reports instead.
    assert declared(without="bench") - {distribution_name(pin) for pin in pins} == {"greylag"}


def test_nothing_imports_the_tests() -> None:
    paths = [*CODE, *(ROOT / "tests").rglob("*.py")]
    assert not [named(path) for path in paths if "tests" in imports(path)]


def test_changelog_knows_the_version() -> None:
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "core" / "__init__.py").read_text(), re.MULTILINE)
    headings = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version
    assert headings[0] == "Unreleased" or headings[0] == version[1]
