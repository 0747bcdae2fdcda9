"""Strings in configs/ are a second import graph: what they name exists, and obeys the import rule."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from core.cli.check import problems_of
from core.cli.compose import compose_run, plain

ROOT = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(ROOT.rglob("*.yaml"))
EXPERIMENTS = [path for path in FILES if path.is_relative_to(ROOT / "experiment")]
LIBRARIES = ("torch", "torchvision", "torchaudio", "torchmetrics", "lightning", "timm", "open_clip")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def content(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def owner(path: Path) -> str | None:
    """The app a file belongs to: configs/app/<app>.yaml or configs/<group>/<app>/..., else None."""
    _group, *rest = path.relative_to(ROOT).with_suffix("").parts
    apps = {app.stem for app in (ROOT / "app").glob("*.yaml")}
    return rest[0] if rest and rest[0] in apps else None


def dotted_names(node: Any) -> Iterator[str]:
    """Every class that a configuration names, wherever it stands in it."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("_target_", "pipeline") and value is not None:
                yield value
            else:
                yield from dotted_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from dotted_names(value)


def allowed(name: str, app: str | None) -> bool:
    roots = ["core", *LIBRARIES] + ([f"apps.{app}"] if app else [])
    return any(name.startswith(f"{root}.") for root in roots)


NAMES = [(path, name) for path in FILES for name in dotted_names(content(path))]


def test_there_is_something_to_check() -> None:
    assert len(EXPERIMENTS) >= 2
    assert {owner(path) for path, _ in NAMES} >= {None, "vision"}


@pytest.mark.parametrize(("path", "name"), NAMES, ids=lambda x: named(x) if isinstance(x, Path) else x)
def test_named_class_exists_and_is_allowed(path: Path, name: str) -> None:
    assert allowed(name, owner(path)), f"configs/{named(path)} may not name {name}"
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize(
    ("name", "app", "answer"),
    [
        ("apps.vision.task.VisionTask", "vision", True),
        ("apps.vision.task.VisionTask", "segment", False),
        ("apps.vision.task.VisionTask", None, False),
        ("core.train.task.Task", "vision", True),
        ("corekit.Thing", None, False),
        ("os.system", "vision", False),
    ],
)
def test_the_rule_itself(name: str, app: str | None, answer: bool) -> None:
    assert allowed(name, app) is answer


@pytest.mark.parametrize("path", FILES, ids=named)
def test_file_begins_with_what_it_is(path: Path) -> None:
    """`greylag list` shows that line; Hydra's @package line may stand before it."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=named)
def test_experiment_composes_and_is_sound(path: Path) -> None:
    """All that `greylag train experiment=... check=true` looks at: classes, their options, optimiser, trainer."""
    name = path.relative_to(ROOT / "experiment").with_suffix("")
    config = plain(compose_run([f"experiment={name}"]))
    assert problems_of(config) == []
    assert config["app"] == name.parts[0] == owner(path)
    assert config["name"] == name.name


def experiment_of(app: str | None) -> str:
    """The first experiment of an app, or of any."""
    names = [path.relative_to(ROOT / "experiment").with_suffix("") for path in EXPERIMENTS]
    return f"experiment={next(name for name in names if app in (None, name.parts[0]))}"


def options(group: str) -> list[str]:
    """`group=option` words, each with an experiment that it is an option of."""
    words = []
    for path in sorted((ROOT / group).rglob("*.yaml")):
        option = path.relative_to(ROOT / group).with_suffix("")
        words.append(f"{experiment_of(owner(path))} {group}={option}")
    return words


@pytest.mark.parametrize(
    "words",
    [word for group in ("model", "optim", "logger", "callbacks", "debug", "trainer") for word in options(group)],
)
def test_option_composes(words: str) -> None:
    """Each option of each group goes with an experiment, keys and values alike."""
    config = plain(compose_run(words.split()))
    gpu = config["trainer"]["accelerator"] == "gpu"
    assert [problem for problem in problems_of(config) if not gpu] == []


@pytest.mark.parametrize("words", options("data"))
def test_dataset_composes(words: str) -> None:
    """Data sets that need a folder of the user's say `root: ???`, those that need a name `name: ???`."""
    config = compose_run(words.split())
    for key in ("root", "name"):
        if OmegaConf.is_missing(config.data, key):
            config.data[key] = "somewhere"
    assert problems_of(plain(config)) == []
