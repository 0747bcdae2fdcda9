"""Errors that are the user's to mend: shown as one sentence, never as a stack trace."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, name or file, told in one sentence: the value, what was expected, what to do."""
