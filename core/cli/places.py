"""Where configurations lie, and what their files say about themselves. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import core
from core.errors import UserError

OWN_CONFIGS = "GREYLAG_CONFIGS"
"""Environment variable: further config folders, separated as in PATH."""


def config_folder() -> Path:
    """Greylag's own ``configs/``: beside ``core/``, in a clone as in a wheel."""
    folder = Path(core.__file__).resolve().parents[1] / "configs"
    if not (folder / "train.yaml").is_file():
        raise UserError(f"{folder} holds no train.yaml; is greylag installed whole?")
    return folder


def config_folders() -> list[Path]:
    """All folders that configurations are looked for in: the users' own, then Greylag's."""
    own = [Path(part).expanduser().resolve() for part in os.environ.get(OWN_CONFIGS, "").split(os.pathsep) if part]
    for folder in own:
        if not folder.is_dir():
            raise UserError(f"{OWN_CONFIGS} names '{folder}', which is no folder.")
    return [*own, config_folder()]


def options_of(group: str) -> dict[str, str]:
    """The options of a config group, such as "experiment": name -> its first line of comment."""
    found: dict[str, str] = {}
    for folder in config_folders():
        for file in sorted((folder / group).glob("**/*.yaml")):
            found.setdefault(file.relative_to(folder / group).with_suffix("").as_posix(), first_comment(file))
    return dict(sorted(found.items()))


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted({path.name for folder in config_folders() for path in folder.iterdir() if path.is_dir()} - {"local"})


def first_comment(file: Path) -> str:
    """The first comment line of a YAML file that is no ``# @package``."""
    for line in _comments(file):
        if line and not line.startswith("@package"):
            return line
    return ""


def _comments(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            return
        yield line.lstrip("# ").strip()
