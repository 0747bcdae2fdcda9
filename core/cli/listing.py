"""``greylag list``: what there is to choose from. Reads nothing but the first lines of configurations."""

from __future__ import annotations

import sys

from core.cli.places import options_of
from core.errors import UserError, did_you_mean

HELP = """
usage: greylag list [apps|models|datasets|experiments|trainers|optimisers]

Each line: the name to use on the command line, and what it is.
"""

SECTIONS = {
    "apps": ("app", "app"),
    "models": ("model", "model"),
    "datasets": ("data", "data"),
    "experiments": ("experiment", "experiment"),
    "trainers": ("trainer", "trainer"),
    "optimisers": ("optim", "optim"),
}
_USUAL = ("apps", "models", "datasets", "experiments")


def run(arguments: list[str]) -> int:
    """Print the wanted sections; returns the exit status."""
    for word in arguments:
        if word not in SECTIONS:
            raise UserError(f"There is no list of '{word}'{did_you_mean(word, list(SECTIONS))}")
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    sections = {section: options_of(SECTIONS[section][0]) for section in arguments or _USUAL}
    width = max((len(name) for options in sections.values() for name in options), default=0)
    for number, (section, options) in enumerate(sections.items()):
        key = SECTIONS[section][1]
        print(f"{chr(10) if number else ''}{bold}{section}{plain}  {dim}{key}=NAME{plain}")
        for name, line in options.items():
            print(f"  {name:<{width}}  {line}".rstrip())
        if not options:
            print(f"  {dim}none yet{plain}")
    return 0
