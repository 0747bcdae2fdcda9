"""``greylag evaluate``: a run's metrics, measured again or on other data."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from core.train.runs import RunFolder
    from core.train.task import Task

HELP = """
usage: greylag evaluate run=FOLDER [key=value ...]

  run=FOLDER            a run folder, or a folder of runs: the newest is taken
  split=val|test|all    on which data; default all
  weights=model         model (default: what pipelines load), best or last (checkpoints)
  data.eval_batch_size=512  trainer=gpu  data.root=...     anything of the run's configuration
  eval.KEY=VALUE        the app's own options, e.g. eval.resolutions=[0.5,1,2,4] for vision

Prints the metrics and adds them to the run's metrics.json; what the app tells beyond them goes to evaluation.json.
"""

_SPLITS = {"val": ("val",), "test": ("test",), "all": ("val", "test")}


def run(arguments: list[str]) -> int:
    """Evaluate; returns the exit status."""
    from core.cli.check import problems_of
    from core.cli.saved import apply_overrides, parse_for_run, take
    from core.cli.terminal import console
    from core.train.runs import RunFolder, revision, write_text_atomically
    from core.train.session import build_data, build_task, evaluate
    from core.train.summary import metrics_table
    from core.train.trainers import build_trainer

    name, overrides = take(parse_for_run(arguments), "run")
    split, overrides = take(overrides, "split", "all")
    weights, overrides = take(overrides, "weights", "model")
    options, overrides = _app_options(overrides)
    if name is None:
        raise UserError("Say which run: greylag evaluate run=runs/vision/digits")
    if split not in _SPLITS:
        raise UserError(f"split={split}: expected val, test or all.")
    folder = RunFolder.open(str(name))
    config = apply_overrides(folder.read_config(), overrides)
    if problems := problems_of(config):
        raise UserError(problems[0])
    out = console()
    data = build_data(config)
    task = build_task(config, data)
    _check_options(options, task)
    source = _load_weights(task, folder, str(weights))
    out.print(f"Evaluating {source}", highlight=False)
    trainer = build_trainer(config["trainer"], [], [])
    metrics = evaluate(trainer, task, data, None, _SPLITS[str(split)])
    if not metrics:
        raise UserError(f"There are no {split} items in this run's data.")
    if trainer.is_global_zero:
        out.print(metrics_table(metrics))
        facts: dict[str, Any] = {
            "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            "weights": source,
            "overrides": [str(word.input_line).lstrip("+") for word in overrides],
            "revision": revision(),
        }
        folder.merge_metrics({"evaluations": [{**facts, "metrics": metrics}]})
        out.print(f"added to {folder.shown}/metrics.json", style="dim", highlight=False)
        data.trainer = None  # all items, not this process's share
        task.to(trainer.strategy.root_device).eval()
        if found := task.study(data, [part for part in _SPLITS[str(split)] if data.has(part)], options, out):
            text = json.dumps({**facts, "options": options, **found}, indent=2, ensure_ascii=False)
            write_text_atomically(folder.evaluation, text + "\n")
            out.print(f"written to {folder.shown}/evaluation.json", style="dim", highlight=False)
    return 0


def _app_options(overrides: list[Override]) -> tuple[dict[str, Any], list[Override]]:
    """The words ``eval.key=value`` as {key: value}, and the others."""
    prefix = "eval."
    own = [word for word in overrides if word.key_or_group.startswith(prefix)]
    rest = [word for word in overrides if word not in own]
    return {word.key_or_group.removeprefix(prefix): word.value() for word in own}, rest


def _check_options(options: dict[str, Any], task: Task) -> None:
    known = [f"eval.{key}" for key in task.study_options]
    for key in (f"eval.{key}" for key in options):
        if key not in known:
            raise UserError(f"There is no option '{key}'{did_you_mean(key, known)}")


def _load_weights(task: Task, folder: RunFolder, which: str) -> str:
    """Load the wanted weights into the task; returns their file's name as shown to the user."""
    from core.checkpoint import files
    from core.train.checkpoint_io import read_checkpoint
    from core.train.runs import shown_path

    if which not in ("model", "best", "last"):
        raise UserError(f"weights={which}: expected model, best or last.")
    model = folder.model / "model.safetensors"
    if which == "model" and model.is_file():
        _fit(task.model, files.read_safetensors(model), shown_path(model))
        return shown_path(model)
    names = {"model": ("best", "last"), "best": ("best",), "last": ("last",)}[which]
    paths = [folder.checkpoints / f"{name}.ckpt" for name in names]
    for path in paths:
        if path.is_file():
            _fit(task, read_checkpoint(path)["state_dict"], shown_path(path))
            return shown_path(path)
    wanted = [model, *paths] if which == "model" else paths
    raise UserError(f"{folder.shown} holds no such weights; looked for {', '.join(path.name for path in wanted)}.")


def _fit(module: Any, tensors: dict[str, Any], source: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit this configuration: {' '.join(str(error).split())[:300]}") from error
