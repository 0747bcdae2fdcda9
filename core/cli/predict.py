"""``greylag predict``: a trained model on files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from core.errors import UserError, did_you_mean

HELP = """
usage: greylag predict run=FOLDER input=PATH [output=PATH] [key=value ...]
       greylag predict model=FOLDER_OR_HUB_ID input=PATH ...

  run=FOLDER       a run folder, or a folder of runs: the newest is taken
  input=PATH       a file, a folder, or - for a list on standard input, as the app knows it
  output=PATH      where answers go; without it they are printed
  device=cpu       default: a GPU if there is one
  ...              the app's own options, e.g. top_k=3 batch_size=64
"""


def run(arguments: list[str]) -> int:
    """Predict; returns the exit status."""
    from core.cli.compose import parse
    from core.cli.models import load_pipeline
    from core.cli.saved import take

    overrides = parse(arguments)
    source, overrides = take(overrides, "input")
    output, overrides = take(overrides, "output")
    if source is None:
        raise UserError("Say what to predict from: input=PATH")
    pipeline, _, overrides = load_pipeline(overrides, "predict")
    options = {word.key_or_group: word.value() for word in overrides}
    _check(pipeline.predict_files, options)
    return pipeline.predict_files(str(source), Path(str(output)) if output is not None else None, **options)


def _check(function: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in ("input", "output")]
    for name in options:
        if name not in known:
            raise UserError(f"There is no option '{name}' for this app{did_you_mean(name, known)}")
