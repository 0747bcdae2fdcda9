"""Verbs, help, and the last stop of every error. Imports nothing heavy: help answers at once."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable

from core.errors import UserError, did_you_mean

VERBS = {
    "train": ("core.cli.train", "train a model, or go on with a run"),
    "evaluate": ("core.cli.evaluate", "measure a run's model"),
    "predict": ("core.cli.predict", "use a run's model on files"),
    "export": ("core.cli.export", "write a run's model for others"),
    "list": ("core.cli.listing", "apps, models, datasets, experiments"),
    "demo": ("core.cli.demo", "train, evaluate and show a small model"),
    "doctor": ("core.cli.doctor", "what works on this machine, and why the rest does not"),
}
_HELP = ("-h", "--help", "help")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def usage() -> str:
    """What ``greylag`` alone prints."""
    verbs = "\n".join(f"  {verb:<10}{line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: greylag VERB [key=value ...]\n\n"
        f"{verbs}\n\n"
        "  greylag list\n"
        "  greylag train experiment=vision/digits\n"
        "  greylag predict run=runs/vision/digits input=photo.jpg\n\n"
        "greylag VERB --help says more; --debug shows stack traces; --version.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 a mistake in the command, 128+n a signal."""
    # Before torch loads OpenMP: threads that spin while they wait stand still for seconds on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except UserError as error:
        if debug:
            raise
        return _complain(str(error), getattr(error, "code", 2))
    except KeyboardInterrupt:
        if debug:
            raise
        return _complain("Stopped.", 130)
    except BrokenPipeError:  # greylag list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug or error.errno not in _DISK:
            raise
        return _complain(
            f"{error.strerror}: {error.filename or 'while writing'}. Checkpoints already written are whole.", 1
        )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in _HELP:
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(importlib.import_module("core").__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise UserError(f"There is no verb '{verb}'{did_you_mean(verb, list(VERBS))}")
    module = importlib.import_module(VERBS[verb][0])
    if any(argument in _HELP[:2] for argument in rest):
        print(module.HELP.strip())
        return 0
    run: Callable[[list[str]], int] = module.run
    return run(rest)


def _complain(sentence: str, code: int) -> int:
    # Of several processes one speaks; and it alone fails, since Lightning kills all when a child does.
    sys.stdout.flush()
    if int(os.environ.get("LOCAL_RANK") or 0) == 0:
        print(f"greylag: {sentence}", file=sys.stderr)
        return code
    return 0 if code in (1, 130, 143) else code
