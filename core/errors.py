"""Errors that are the user's to mend: shown as one sentence, never as a stack trace."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A wrong value, name or file, told in one sentence: the value, what was expected, what to do."""


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
