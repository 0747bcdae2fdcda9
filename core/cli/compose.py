"""Composing a run's configuration with Hydra, and telling its errors in one sentence with the nearest names."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.cli.places import config_folder, config_folders, groups, options_of
from core.cli.schema import RunConfig
from core.errors import UserError, did_you_mean

_FREE = re.compile(r"(trainer|data|task)\.[A-Za-z]\w*=")

ConfigStore.instance().store(name="schema", node=RunConfig)


def parse(arguments: list[str]) -> list[Override]:
    """key=value words as Hydra reads them. Raises UserError for anything else."""
    for argument in arguments:
        if "=" not in argument and not argument.startswith("~"):
            hint = next((f"{group}={argument}" for group in groups() if argument in options_of(group)), None)
            raise UserError(f"'{argument}' is no key=value{f'; did you mean {hint}?' if hint else '.'}")
    try:
        return OverridesParser.create().parse_overrides(arguments)
    except OverrideParseException as error:
        text = error.override or ""
        raise UserError(
            f"'{text}' cannot be read as key=value; values with spaces, commas or brackets need quotes: 'key=\"a, b\"'."
        ) from error


def free_keys(arguments: list[str]) -> list[str]:
    """Words such as ``trainer.max_steps=5`` as ``++trainer.max_steps=5``.

    A configuration names the usual options of the trainer, the data and the task, not all their classes have.
    Those may be given all the same; the class's signature says later whether there is such an option.
    """
    return [f"++{word}" if _FREE.match(word) else word for word in arguments]


def search_path(arguments: list[str]) -> list[str]:
    """The override that adds users' own config folders, unless the command brings one."""
    own = config_folders()[:-1]
    if not own or any(argument.lstrip("+").startswith("hydra.searchpath=") for argument in arguments):
        return []
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in own)}]"]


def compose_run(arguments: list[str]) -> DictConfig:
    """The root configuration of ``greylag train ARGUMENTS``; of a sweep, its first point.

    Raises:
        UserError: unknown keys, groups or options, values of the wrong kind.
    """
    overrides = [_first_point(override) for override in parse(free_keys(arguments))]
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    if "experiment" not in keys and "app" not in keys:
        for key in keys:
            if difflib.get_close_matches(key, ["experiment", "app"]):
                raise UserError(f"There is no option '{key}'; did you mean 'experiment'?")
        known = ", ".join(options_of("experiment")) or "none yet"
        raise UserError(f"Say what to train: greylag train experiment=NAME; there are: {known}.")
    _check_options(overrides)
    try:
        return _compose(overrides)
    except HydraException as error:
        raise UserError(_explain(error, overrides)) from error
    except OmegaConfBaseException as error:
        raise UserError(_explain_value(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"A configuration is no valid YAML: {' '.join(str(error).split())}") from error


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved and as plain dicts and lists. Raises UserError for what cannot be resolved."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"The configuration lacks a value for {', '.join(missing)}.")
        content = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain_value(error)) from error
    assert isinstance(content, dict)
    known = [field.name for field in fields(RunConfig)]
    for key in content:  # "+key=..." and files get past Hydra's own check of the root
        if key not in known:
            raise UserError(f"There is no option '{key}'{did_you_mean(str(key), known)}")
    return {str(key): value for key, value in content.items()}


def flat_keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every value and every group of values."""
    found: list[str] = []
    if isinstance(config, dict | DictConfig):
        items = config.items_ex(resolve=False) if isinstance(config, DictConfig) else config.items()
        for key, value in items:
            found.append(f"{prefix}{key}")
            found += flat_keys(value, f"{prefix}{key}.")
    return found


def load_group(group: str, option: str) -> dict[str, Any]:
    """One option of a group, e.g. ("trainer", "gpu"), as plain data without resolving."""
    _check_options([f"{group}={option}"])
    with _hydra():
        config = compose(f"{group}/{option}", overrides=search_path([]))
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return content.get(group, content)


def _compose(overrides: list[str]) -> DictConfig:
    with _hydra():
        return compose("train", overrides=[*overrides, *search_path(overrides)])


def _hydra() -> Any:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(config_folder()), version_base="1.3")


def _first_point(override: Override) -> str:
    if override.is_sweep_override() and not override.is_hydra_override():
        first = next(override.sweep_string_iterator(), None) if override.is_choice_sweep() else None
        if first is not None:
            return f"{override.key_or_group}={first}"
    return override.input_line or ""


def _check_options(overrides: list[str]) -> None:
    """Names of options are checked before Hydra does, which knows no neighbours."""
    known = groups()
    for word in overrides:
        key, _, option = word.lstrip("+").partition("=")
        if key in known and option not in ("", "null") and not option.startswith(("{", "[")):
            options = options_of(key)
            if option not in options:
                raise UserError(f"There is no {key} '{option}'{did_you_mean(option, list(options))}")


def _explain(error: HydraException, overrides: list[str]) -> str:
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _explain_key(found[1], overrides)
    if found := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|'RunConfig')", text + str(error.__cause__)):
        return f"There is no option '{found[1]}'{did_you_mean(found[1], flat_keys(_without(overrides, found[1])))}"
    if isinstance(error, MissingConfigException):
        name = str(error.missing_cfg_file)
        return f"There is no configuration '{name}'{did_you_mean(name, list(error.options or []))}"
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return _explain_value(error.__cause__)
    return " ".join(text.split())


def _explain_key(key: str, overrides: list[str]) -> str:
    """Neighbours first among the key's own siblings, then anywhere."""
    keys = flat_keys(_without(overrides, key))
    parent, _, leaf = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == parent]
    prefix = f"{parent}." if parent else ""
    if near := difflib.get_close_matches(leaf, [*siblings, *([] if parent else groups())], 3, 0.6):
        return f"There is no option '{key}'{_or([prefix + name for name in dict.fromkeys(near)])}"
    if near := difflib.get_close_matches(key, keys, 3, 0.75):
        return f"There is no option '{key}'{_or(near)}"
    has = f"; '{parent}' has: {', '.join(siblings)}" if parent and siblings else ""
    return f"There is no option '{key}'{has}."


def _or(names: list[str]) -> str:
    return "; did you mean " + " or ".join(f"'{name}'" for name in names) + "?"


def _without(overrides: list[str], key: str) -> DictConfig:
    """The configuration without the override that broke it, for its neighbours' names."""
    rest = [word for word in overrides if word.lstrip("+~").partition("=")[0] != key]
    try:
        return _compose(rest)
    except (HydraException, OmegaConfBaseException):
        return OmegaConf.structured(RunConfig)


def _explain_value(error: OmegaConfBaseException) -> str:
    key = error.full_key or (str(error.key) if error.key is not None else "")
    first = str(error).strip().splitlines()[0].rstrip(".")
    if found := re.search(r"Key '([^']+)' not in 'RunConfig'", first):
        return f"There is no option '{found[1]}'{did_you_mean(found[1], flat_keys(OmegaConf.structured(RunConfig)))}"
    return f"{f'{key}: ' if key else ''}{first}."
