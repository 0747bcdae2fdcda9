"""Every command and every link in the documentation exists."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "apps").glob("*/README.md")],
    key=lambda path: str(path),
)
GROUPS = sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(page: Path) -> Iterator[str]:
    """Lines of code blocks that are not Python or data, and inline code; comments cut off."""
    text = page.read_text()
    for language, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "bash", "sh", "console", "shell"):
            yield from (line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def complaints(command: str) -> Iterator[str]:
    if (make := re.match(r"make ([a-z]+)\b", command)) and make[1] not in TARGETS:
        yield f"no make target {make[1]}"
    if (module := re.search(r"python3? -m ([\w.]+)", command)) and not importlib.util.find_spec(module[1]):
        yield f"no module {module[1]}"
    for path in re.findall(r"\b(?:tests|benchmarks|configs|apps|core|docs)/[\w/.-]+\w", command):
        if not re.search(r"[<{*]", command) and not (ROOT / path.split("::")[0]).exists():
            yield f"no file {path}"
    for group, name in re.findall(r"\b([a-z]+)=([\w/-]+)(?=[\s,]|$)", command):
        if group in GROUPS and name != "null" and not (ROOT / "configs" / group / f"{name}.yaml").exists():
            yield f"no configs/{group}/{name}.yaml"
    if verb := re.match(r"(?:\S*/)?greylag ([a-z]+)\b", command):
        from core.cli.command import VERBS

        if verb[1] not in VERBS:
            yield f"no verb {verb[1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    assert not [f"{command}: {wrong}" for command in commands(page) for wrong in complaints(command)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page: Path) -> None:
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s#]+)[^)]*\)", page.read_text())
    files = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in files if not (page.parent / link).exists()]


def test_readme_names_the_two_commands() -> None:
    said = set(commands(ROOT / "README.md"))
    assert {"make demo", "make test"} <= said


EXAMPLES = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    if "<time>" not in block  # needs a run
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_readme_examples_run(example: str) -> None:
    exec(compile(example, "README.md", "exec"), {})


def test_readme_has_an_example_of_the_core() -> None:
    assert any("from core import" in example for example in EXAMPLES)


@pytest.mark.parametrize(
    "command",
    ["make dmeo", "python -m benchmarks.nothing", "greylag trian x", "pytest tests/nothing", "x data=a/b"],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    assert list(complaints(command))
