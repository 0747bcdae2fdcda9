"""Which model a command means: run=FOLDER or model=FOLDER_OR_HUB_ID."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override

from core.cli.places import options_of
from core.cli.saved import take
from core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from core.pipeline import Pipeline


def load_pipeline(overrides: list[Override], verb: str) -> tuple[Pipeline, Path | None, list[Override]]:
    """The pipeline that run=... or model=... names; the model's folder, if it is on this machine; the rest.

    Raises:
        UserError: none or both given, no such run, no model in it yet.
    """
    run, overrides = take(overrides, "run")
    model, overrides = take(overrides, "model")
    device, overrides = take(overrides, "device")
    if (run is None) == (model is None):
        raise UserError(f"Say which model: greylag {verb} run=FOLDER, or model=FOLDER_OR_HUB_ID.")
    if run is not None:
        pipeline, folder = _of_run(str(run))
        return pipeline.from_pretrained(folder, device=device), folder, overrides
    path = Path(str(model)).expanduser()
    pipeline = _of_app(str(model))
    return pipeline.from_pretrained(str(model), device=device), path if path.is_dir() else None, overrides


def _of_run(name: str) -> tuple[type[Pipeline], Path]:
    from core.train.runs import RunFolder

    folder = RunFolder.open(name)
    dotted = folder.read_config().get("pipeline")
    if not dotted:
        raise UserError(f"{folder.shown} has no pipeline in its configuration, so nothing knows how to use it.")
    if not (folder.model / "config.json").is_file():
        raise UserError(
            f"{folder.shown} holds no model yet: its training did not end. Go on with: greylag train run={folder.shown}"
        )
    return _pipeline_class(str(dotted)), folder.model


def _of_app(model: str) -> type[Pipeline]:
    """The pipeline of the app that the model's config.json names, looked up in our own configurations: what a
    downloaded file says never becomes the name of code."""
    from core.cli.compose import compose_run
    from core.pipeline import read_model_config

    app = str(read_model_config(model).get("app"))
    apps = options_of("app")
    if app not in apps:
        raise UserError(f"'{model}' is of the app '{app}'{did_you_mean(app, list(apps))}")
    return _pipeline_class(str(compose_run([f"app={app}"]).pipeline))


def _pipeline_class(dotted: str) -> type[Pipeline]:
    from core.pipeline import Pipeline
    from core.train.instantiate import find_class

    found = find_class(dotted)
    if not issubclass(found, Pipeline):
        raise UserError(f"pipeline is '{dotted}'; expected a subclass of core.pipeline.Pipeline.")
    return found
