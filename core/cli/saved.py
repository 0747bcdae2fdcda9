"""A run's saved configuration, and key=value words applied to it."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.cli.compose import flat_keys, free_keys, load_group, parse
from core.errors import UserError, did_you_mean

GROUPS = ("trainer", "logger", "callbacks", "optim")
"""Groups that can be chosen anew for an existing run: trainer=gpu."""


def take(overrides: list[Override], key: str, default: Any = None) -> tuple[Any, list[Override]]:
    """The value of ``key`` among the overrides, and the others."""
    rest = [override for override in overrides if override.key_or_group != key]
    found = [override for override in overrides if override.key_or_group == key]
    return (found[-1].value() if found else default), rest


def parse_for_run(arguments: list[str]) -> list[Override]:
    """The words of a command about an existing run."""
    return parse(free_keys(arguments))


def apply_overrides(config: dict[str, Any], overrides: list[Override]) -> dict[str, Any]:
    """The configuration with the overrides applied: key=value, +new.key=value, ~key, trainer=gpu.

    Raises:
        UserError: a key that is not there, with its neighbours.
    """
    content = OmegaConf.create(config)
    known = flat_keys(config)
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise UserError(f"'{override.input_line}': an existing run takes one value, not several.")
        if key in GROUPS and isinstance(value, str):
            content[key] = OmegaConf.merge(content[key], load_group(key, value))
        elif key not in known and not (override.is_add() or override.is_force_add()):
            raise UserError(f"There is no option '{key}' in this run's configuration{did_you_mean(key, known)}")
        elif key == "app" and value != config["app"]:
            raise UserError(f"app={value} does not fit this run, which is of the app {config['app']}.")
        elif override.is_delete():
            OmegaConf.update(content, key, None)
        else:
            OmegaConf.update(content, key, value, merge=True)
    try:
        plain = OmegaConf.to_container(content, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}
