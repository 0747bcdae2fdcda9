"""One training run from its configuration to its last line: build, fit, evaluate, write the model, report."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.markup import escape

from core.checkpoint import files
from core.errors import UserError
from core.pipeline import Pipeline
from core.train import summary
from core.train.averaging import AveragedWeights
from core.train.checkpoint_io import read_checkpoint
from core.train.checkpoints import LAST, Checkpoints
from core.train.data import DataModule
from core.train.determinism import StepSeeds
from core.train.history import History
from core.train.instantiate import find_class, instantiate
from core.train.progress import ProgressLines, clock
from core.train.runs import RunFolder, first_process, revision, shown_path
from core.train.seeds import derive_seed, seed_all
from core.train.stops import RunStopped
from core.train.task import Task
from core.train.trainers import build_trainer, is_sharded

FINISHED, UNFINISHED = "finished", "unfinished"


@dataclass
class Session:
    """The parts of one run, put together."""

    config: dict[str, Any]
    run: RunFolder
    data: DataModule
    task: Task
    trainer: L.Trainer
    checkpoints: Checkpoints
    history: History
    console: Console


def train(config: dict[str, Any], run: RunFolder | None, console: Console, *, resume: bool = False) -> dict[str, float]:
    """Train as ``config`` says.

    Args:
        config: resolved, plain (core/cli/schema.py).
        run: the run folder; None on all processes but the first of a new distributed run.
        console: where to print; the first process's alone is used.
        resume: go on from the run's last checkpoint, if it has one.

    Returns:
        The final metrics by name.

    Raises:
        UserError: something the user can mend; RunStopped: a signal, or a loss that is not finite.
    """
    if run is None:
        return _train(config, RunFolder(Path()), console, resume=resume)
    if not first_process():
        return _train(config, run, console, resume=resume)
    with run.lock():
        run.write_config(config)
        facts = {"app": config["app"], "name": config["name"], "seed": config["seed"], "revision": revision()}
        run.merge_metrics({**facts, "status": UNFINISHED})
        try:
            return _train(config, run, console, resume=resume)
        except RunStopped:
            raise
        except Exception:
            run.discard_if_unused()
            raise


def build_data(config: Mapping[str, Any]) -> DataModule:
    """The data module, set up; with as many threads as the configuration says from here on."""
    if threads := config.get("threads"):
        torch.set_num_threads(int(threads))
    data = instantiate(config["data"], "data")
    if not isinstance(data, DataModule):
        raise UserError(f"data._target_ is a {type(data).__name__}; expected a subclass of core.train.data.DataModule.")
    data.setup_once()
    return data


def build_task(config: Mapping[str, Any], data: DataModule) -> Task:
    """The task with freshly initialised weights, the same for the same seed."""
    seed_all(derive_seed(int(config["seed"]), "initial weights"))
    task = instantiate(
        config["task"], "task", model=dict(config["model"]), optim=dict(config["optim"]), data=data.describe()
    )
    if not isinstance(task, Task):
        raise UserError(f"task._target_ is a {type(task).__name__}; expected a subclass of core.train.task.Task.")
    return task


def _train(config: dict[str, Any], run: RunFolder, console: Console, *, resume: bool) -> dict[str, float]:
    session = _build(config, run, console)
    if first_process():
        summary.print_start(console, config, run, session.task.model, _facts(session))
    last = run.checkpoints / LAST
    start = str(last) if resume and last.is_file() else None
    if resume and first_process():
        console.print(
            f"going on from {shown_path(last)}" if start else "no checkpoint yet: starting from the beginning"
        )
    try:
        session.trainer.fit(session.task, datamodule=session.data, ckpt_path=start, weights_only=True)
        return _finish(session)
    except torch.OutOfMemoryError as error:
        raise RunStopped(
            "The GPU's memory is full: try a smaller data.batch_size with trainer.accumulate_grad_batches=2, "
            f"trainer.precision=bf16-mixed or a smaller model. Go on with: greylag train run={run.shown} ..."
        ) from error


def _build(config: dict[str, Any], run: RunFolder, console: Console) -> Session:
    data = build_data(config)
    task = build_task(config, data)
    first = first_process()
    metric = config["monitor"]["metric"] if data.has("val") else None
    history = History(run.log / "history.csv" if first else None)
    callbacks: list[Callback] = [StepSeeds(int(config["seed"]))]
    if config["ema"] is not None:
        if is_sharded(config["trainer"]):
            raise UserError("ema is not possible with weights shared out among processes (trainer=fsdp): ema=null.")
        callbacks.append(AveragedWeights(float(config["ema"])))
    callbacks += [ProgressLines(console, metric), history]
    own = dict(config["callbacks"])
    options = own.pop("checkpoints", None) or {"_target_": "core.train.checkpoints.Checkpoints"}
    place = {"folder": str(run.checkpoints), "monitor": metric, "mode": config["monitor"]["mode"]}
    checkpoints = instantiate(options, "callbacks.checkpoints", **place)
    callbacks += [instantiate(part, f"callbacks.{name}") for name, part in own.items() if part]
    loggers = [
        instantiate(part, f"logger.{name}", save_dir=str(run.log)) for name, part in config["logger"].items() if part
    ]
    trainer = build_trainer(config["trainer"], [*callbacks, checkpoints], loggers)
    return Session(config, run, data, task, trainer, checkpoints, history, console)


def _finish(session: Session) -> dict[str, float]:
    """Evaluate the weights that count, write the model and the report, say where everything is."""
    trainer, run = session.trainer, RunFolder(session.checkpoints.folder.parent)
    # The average is in the checkpoint already: its callback would swap in the last one for the best. And loading
    # the best checkpoint would set the others back to its epoch.
    trainer.callbacks = [c for c in trainer.callbacks if isinstance(c, StepSeeds)]  # type: ignore[attr-defined]
    path = session.checkpoints.final_path
    metrics = evaluate(trainer, session.task, session.data, path)
    if not trainer.is_global_zero:
        return metrics
    write_model(session.config, session.task, run, metrics)
    run.merge_metrics(
        {
            "status": FINISHED,
            "metrics": metrics,
            "checkpoint": path.name,
            "epochs": len(session.history.rows),
            "steps": session.history.rows[-1]["step"] if session.history.rows else 0,
            "train_seconds": round(session.history.seconds, 1),
            "parameters": summary.parameter_count(session.task.model),
            "state_bytes": summary.state_bytes(session.task.model),
            "finished": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
    )
    report = _report(session, run, metrics)
    summary.print_end(session.console, run, metrics, report, clock(session.history.seconds))
    return metrics


def evaluate(
    trainer: L.Trainer, task: Task, data: DataModule, weights: Path | None, splits: tuple[str, ...] = ("val", "test")
) -> dict[str, float]:
    """Metrics of a task on the data's splits.

    Args:
        weights: a checkpoint whose weights are taken, or None for those the task holds.
        splits: of "val" and "test"; those that are there.
    """
    metrics: dict[str, float] = {}
    checkpoint = str(weights) if weights is not None else None
    for split, run_split in (("val", trainer.validate), ("test", trainer.test)):
        if split in splits and data.has(split):
            found = run_split(task, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
            metrics |= {name: float(value) for part in found for name, value in part.items()}
    if weights is not None and not metrics:
        task.load_state_dict(read_checkpoint(weights)["state_dict"])
    return metrics


def write_model(config: Mapping[str, Any], task: Task, run: RunFolder, metrics: dict[str, float]) -> None:
    """Write the run's ``model/`` folder: what pipelines load."""
    about = {"app": config["app"], "name": config["name"], "metrics": metrics}
    description = {**task.pretrained_config(), **about}
    if config["pipeline"]:
        pipeline = find_class(config["pipeline"])
        if not issubclass(pipeline, Pipeline):
            raise UserError(f"pipeline is '{config['pipeline']}'; expected a subclass of core.pipeline.Pipeline.")
        pipeline(task.model, description).save_pretrained(run.model)
    else:
        files.write_safetensors(
            {k: v.cpu() for k, v in task.model.state_dict().items()}, run.model / "model.safetensors"
        )
        files.write_json(description, run.model / "config.json")


def _report(session: Session, run: RunFolder, metrics: dict[str, float]) -> Path | None:
    """The app's report. It must not cost the run: what goes wrong is said, and the run stays finished."""
    session.data.trainer = None  # all items, not this process's share
    session.task.to(session.trainer.strategy.root_device).eval()
    try:
        run.report.mkdir(exist_ok=True)
        return session.task.write_report(run.report, session.data, metrics, session.history.rows)
    except Exception as error:  # noqa: BLE001  any failure of pictures and pages
        (run.report / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        session.console.print(
            f"[yellow]The report could not be written[/] ({escape(str(error))}); see {run.report}/error.txt"
        )
        return None
    finally:
        if not any(run.report.iterdir()):
            run.report.rmdir()


def _facts(session: Session) -> str:
    trainer, data = session.trainer, session.data
    sizes = [f"{len(getattr(data, f'{split}_set')):,} {split}" for split in ("train", "val", "test") if data.has(split)]
    device = session.trainer.strategy.root_device.type
    where = f"{trainer.world_size} x {device}" if trainer.world_size > 1 else device
    return f"on {where}, {trainer.precision}, seed {session.config['seed']}; items: {', '.join(sizes)}"
