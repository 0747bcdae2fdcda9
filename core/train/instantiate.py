"""The one place where a name in a configuration becomes an object.

Only classes, only from packages on a short list, only with options their constructors know: a wrong option gets
a sentence with its neighbours before anything is built. Your own package joins the list by name in the
environment variable GREYLAG_TARGETS (comma-separated).
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import UserError, did_you_mean

PACKAGES = ("core", "apps", "torch", "lightning", "torchmetrics", "timm", "torchvision", "torchaudio")
TARGET = "_target_"


def find_class(name: str) -> type:
    """The class with this dotted name.

    Raises:
        UserError: not on the list, no such module, or no class.
    """
    package, _, _ = name.partition(".")
    allowed = _allowed()
    module_name, _, attribute = name.rpartition(".")
    if package not in allowed or not module_name:
        raise UserError(
            f"_target_ '{name}' is not from an allowed package ({', '.join(allowed)}); "
            "your own package is allowed by GREYLAG_TARGETS=package."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"_target_ '{name}' needs the package '{error.name}': pip install it.") from error
        raise UserError(f"_target_ '{name}': there is no module '{error.name}'.") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        near = did_you_mean(attribute, [key for key, value in vars(module).items() if isinstance(value, type)])
        raise UserError(f"_target_ '{name}' is no class of that module{near}")
    if found.__module__.partition(".")[0] not in allowed:  # e.g. torch.subprocess.Popen
        raise UserError(f"_target_ '{name}' is really {found.__module__}.{found.__qualname__}, which is not allowed.")
    return found


def instantiate(config: Mapping[str, Any], where: str, **provided: Any) -> Any:
    """Build the object that ``config`` describes.

    Args:
        config: plain data: "_target_" and the constructor's options; options that hold a "_target_" themselves
            are built first.
        where: its place in the configuration, for messages ("task", "logger.wandb").
        provided: further arguments, from the harness.

    Raises:
        UserError: no or a wrong _target_, options that the constructor does not take, or values it refuses.
    """
    target = check_target(config, where, provided)
    options = {key: _build_inner(value, f"{where}.{key}") for key, value in config.items() if key != TARGET}
    try:
        return target(**(provided | options))
    except UserError:
        raise
    except ValueError as error:  # what a constructor says of its arguments is about the configuration
        raise UserError(f"{where}: {error}") from error
    except ModuleNotFoundError as error:
        package = error.name or str(config[TARGET])
        raise UserError(f"'{where}' needs a package that is not installed: {package}.") from error


def check_target(config: Mapping[str, Any], where: str, provided: Mapping[str, Any] | None = None) -> type:
    """The class of a configuration whose options fit its constructor; nothing is built. Raises UserError."""
    if not isinstance(config, Mapping) or not config.get(TARGET):
        raise UserError(f"'{where}' needs a _target_: the dotted name of a class.")
    target = find_class(str(config[TARGET]))
    given = (provided or {}).keys() | {key for key in config if key != TARGET}
    names, required, open_ended = parameters_of(target)
    for key in config:
        if key != TARGET and key not in names and not open_ended:
            raise UserError(
                f"There is no option '{where}.{key}': {target.__name__} does not take it{did_you_mean(key, names)}"
            )
    if missing := [key for key in required if key not in given]:
        raise UserError(f"'{where}' lacks {', '.join(missing)}, which {target.__name__} requires.")
    return target


def parameters_of(target: type) -> tuple[list[str], list[str], bool]:
    """Names a constructor takes, those without a default, and whether it takes any other as well.

    Where a constructor hands ``**kwargs`` on to its base class, the base's names count too.
    """
    names: dict[str, bool] = {}
    for owner in target.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.setdefault(parameter.name, parameter.default is parameter.empty and owner is target)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return list(names), [name for name, required in names.items() if required], False
    return list(names), [name for name, required in names.items() if required], True


def targets(config: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every (place, mapping) of a configuration that has a "_target_"."""
    if isinstance(config, Mapping):
        if config.get(TARGET):
            yield where, config
        for key, value in config.items():
            yield from targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from targets(value, f"{where}[{number}]")


def _build_inner(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            return instantiate(value, where)
        return {key: _build_inner(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_build_inner(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    return value


def _allowed() -> list[str]:
    own = os.environ.get("GREYLAG_TARGETS", "").split(",")
    return [*PACKAGES, *(name.strip() for name in own if name.strip())]
