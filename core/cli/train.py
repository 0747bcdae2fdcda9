"""``greylag train``: a new run, composed by Hydra; a sweep of runs; or on with a run that was stopped."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.places import config_folder
from core.errors import UserError

if TYPE_CHECKING:
    from core.train.runs import RunFolder

HELP = """
usage: greylag train experiment=NAME [key=value ...]
       greylag train run=FOLDER [key=value ...]        go on with a run that was stopped
       greylag train -m experiment=NAME key=a,b ...    one run for each value

  experiment=vision/digits      what to train; 'greylag list' names them all
  model=vision/small            another model, data=..., optim=adamw|sgd
  trainer=cpu|gpu|ddp|fsdp      where; trainer.max_epochs=20, trainer.precision=bf16-mixed
  data.batch_size=128  optim.lr=3e-4  seed=1  ema=0.999
  logger=tensorboard|wandb|csv_only    debug=fast|overfit
  runs_dir=FOLDER               instead of runs/
  check=true                    check the configuration and stop
  --cfg job                     print the whole configuration and stop

Own configurations: hydra.searchpath=[file:///my/configs], or GREYLAG_CONFIGS=/my/configs.
"""


def run(arguments: list[str], finished: list[RunFolder] | None = None) -> int:
    """Train; returns the exit status.

    Args:
        arguments: the words after the verb.
        finished: gets the folders of the runs that ended well.
    """
    if any(word.startswith("run=") for word in arguments):
        return _resume(arguments)
    from core.cli.compose import compose_run, free_keys, plain, search_path

    words = [word for word in arguments if not word.startswith("-")]
    flags = [word for word in arguments if word.startswith("-")]
    if not {"--cfg", "-c", "--info", "-i"} & set(flags):
        config = plain(compose_run(words))  # tells mistakes better than Hydra's own main
        if {"-m", "--multirun"} & set(flags):
            _refuse_split_sweep(config)
    return _with_hydra([*free_keys(arguments), *search_path(words)], finished if finished is not None else [])


def _resume(arguments: list[str]) -> int:
    from core.cli.saved import apply_overrides, parse_for_run, take
    from core.train.runs import RunFolder

    overrides = parse_for_run(arguments)
    name, rest = take(overrides, "run")
    folder = RunFolder.open(str(name))
    config = apply_overrides(folder.read_config(), rest)
    status = folder.read_metrics().get("status")
    if status == "finished" and not rest:
        print(f"{folder.shown} is finished; its metrics: {folder.shown}/metrics.json. Nothing is left to train.")
        print("To train longer: greylag train run=... trainer.max_epochs=N")
        return 0
    _require_sound(config)
    _execute(config, folder, resume=True)
    return 0


def _with_hydra(arguments: list[str], finished: list[RunFolder]) -> int:
    """Hand over to Hydra, which composes again and, with -m, calls the job once per point."""
    import hydra

    command = list(sys.argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer

    @hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")
    def job(config: Any) -> float | None:
        # Lightning starts further processes with the command in sys.argv, which must have its verb again.
        sys.argv = command
        try:
            return _job(config, finished)
        except Exception as error:
            raise _Leave(error) from error  # past Hydra, which would print a trace

    sys.argv = [command[0], *arguments]
    try:
        job()
    except _Leave as leave:
        raise leave.error from leave.error.__cause__
    finally:
        sys.argv = command
    return 0


class _Leave(BaseException):
    """Carries an error through Hydra's job runner, which handles every Exception itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _job(config: Any, finished: list[RunFolder]) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from core.cli.compose import plain
    from core.train.runs import RunFolder, first_process
    from core.train.stops import NotFinite

    content = plain(config)
    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    if sweeping:
        _refuse_split_sweep(content)
    if content["check"]:
        return _check(content)
    _require_sound(content)
    if not first_process():
        folder = None
    elif sweeping:
        folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    else:
        folder = RunFolder.create(content["runs_dir"], content["app"], content["name"])
    try:
        metrics = _execute(content, folder, resume=False)
    except NotFinite as error:
        if not sweeping:
            raise
        print(f"greylag: {error} The sweep goes on.", file=sys.stderr)
        return math.nan
    if folder is not None:
        finished.append(folder)
    return metrics.get(content["monitor"]["metric"] or "")


def _refuse_split_sweep(config: dict[str, Any]) -> None:
    """In a sweep, processes that Lightning starts would each run the whole sweep, and a sampler would give each
    its own values without a word."""
    devices = config["trainer"].get("devices", 1)
    several = devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1)
    launched = any(name in os.environ for name in ("SLURM_PROCID", "TORCHELASTIC_RUN_ID"))
    if several and ("LOCAL_RANK" in os.environ or not launched):
        raise UserError(
            f"train -m with trainer.devices={devices} would start each process on its own sweep: "
            "use trainer.devices=1, or hydra/launcher=submitit_slurm."
        )


def _check(config: dict[str, Any]) -> None:
    from core.cli.check import problems_of

    problems = problems_of(config)
    if problems:
        raise UserError("\n         ".join(problems))
    print(f"{config['app']}/{config['name']}: the configuration is sound.")


def _require_sound(config: dict[str, Any]) -> None:
    from core.cli.check import problems_of

    if problems := problems_of(config):
        raise UserError(problems[0])


def _execute(config: dict[str, Any], folder: Any, *, resume: bool) -> dict[str, float]:
    from core.cli.terminal import console
    from core.train.session import train

    config = {**config, "run": None, "check": False}
    return train(config, folder, console(), resume=resume)
