"""The environment variables that Greylag reads: what each means, and what is wrong with a value."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from core.cli.places import OWN_CONFIGS, config_folders
from core.errors import UserError, did_you_mean


def writable(path: Path) -> bool:
    """Whether the folder `path` can be written, or made; nothing is made to find out."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _check_backend(value: str) -> str | None:
    from core.wkv import available_backends

    known = available_backends()
    if value not in known:
        return f"GREYLAG_WKV is '{value}', which is no backend{did_you_mean(value, list(known))}"
    reason = known[value]
    return reason and f"GREYLAG_WKV is '{value}', which cannot run here: {reason}; unset it or choose another."


def _check_cache(value: str) -> str | None:
    if writable(Path(value).expanduser()):
        return None
    return f"GREYLAG_CACHE is '{value}', which cannot be written: name another folder."


def _check_configs(value: str) -> str | None:
    try:
        config_folders()
    except UserError as error:
        return str(error)
    return None


def _check_targets(value: str) -> str | None:
    for name in filter(None, (part.strip() for part in value.split(","))):
        if "." in name or importlib.util.find_spec(name) is None:
            return f"GREYLAG_TARGETS names '{name}', which is no package here: install it, or set PYTHONPATH."
    return None


def _check_shared(value: str) -> str | None:
    return None if Path(value).is_dir() else f"GREYLAG_SHARED is '{value}', which is no folder: mend or unset it."


VARIABLES: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "GREYLAG_WKV": ("the operator's backend", _check_backend),
    "GREYLAG_CACHE": ("where the compiled kernel and unpacked data are kept", _check_cache),
    OWN_CONFIGS: ("further config folders", _check_configs),
    "GREYLAG_TARGETS": ("further packages that configurations may name", _check_targets),
    "GREYLAG_SHARED": ("a folder of data sets and models", _check_shared),
}
"""Name -> its meaning, and a check that returns one sentence if the value cannot be meant."""


def problem_of(name: str) -> str | None:
    """What is wrong with a variable that is set, in one sentence; None if all is well or it is not set."""
    value = os.environ.get(name)
    return VARIABLES[name][1](value) if value else None
