"""Errors that are the user's to mend: shown as one sentence, never as a stack trace."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.util import find_spec


class UserError(ValueError):
    """A wrong value, name or file, told in one sentence: the value, what was expected, what to do."""


class MissingExtra(UserError, ImportError):
    """Packages of an extra of Greylag's are not installed."""


def require_extra(extra: str, *modules: str) -> None:
    """See that an extra's modules are installed; none is imported.

    Args:
        extra: its name in pyproject.toml, which is the app's.
        modules: top-level modules that the app cannot do without.

    Raises:
        MissingExtra: one sentence that names what is missing and the command that installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"apps.{extra} needs {' and '.join(missing)}: pip install 'greylag[{extra}]'.")


def did_you_mean(word: str, choices: Sequence[str], *, shown: int = 20) -> str:
    """The end of a sentence about an unknown name.

    Args:
        word: what was given.
        choices: what there is.
        shown: how many choices are listed where none is near.

    Returns:
        "; did you mean 'a' or 'b'?", or "; there are: a, b, c, ...", or ".".
    """
    if near := difflib.get_close_matches(word, choices, 3, 0.6):
        return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    if not choices or not shown:
        return "."
    return f"; there are: {', '.join(choices[:shown])}{', ...' if len(choices) > shown else '.'}"
