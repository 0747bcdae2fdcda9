"""Run folders: ``runs/<app>/<name>/<time>/`` and what lies in them.

config.yaml (resolved), metrics.json, log/, checkpoints/, model/, report/.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

import core
from core.atomic import replacing
from core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class RunFolder:
    """The places in one run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def shown(self) -> str:
        """As one would type it: relative to the working folder where that is shorter."""
        return shown_path(self.path)

    @classmethod
    def create(cls, runs_dir: str | Path, app: str, name: str) -> RunFolder:
        """A new, empty folder that no other process has got. Raises UserError where none can be made."""
        parent = Path(runs_dir).expanduser() / app / name
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in range(1000):
                path = parent / (f"{stamp}_{number}" if number else stamp)
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise UserError(f"No run folder can be made in {parent} ({error.strerror}); see runs_dir.") from error
        raise UserError(f"{parent} holds 1000 runs of this second; something is wrong.")

    @classmethod
    def open(cls, name: str | Path) -> RunFolder:
        """An existing run: its folder, or a folder of runs, of which the newest is taken.

        Raises:
            UserError: nothing there; with the nearest names.
        """
        path = Path(name).expanduser()
        if (path / "config.yaml").is_file():
            return cls(path)
        if found := sorted(path.glob("**/config.yaml"), key=lambda file: file.stat().st_mtime):
            return cls(found[-1].parent)
        if path.is_dir():
            raise UserError(f"'{name}' is no run folder: it holds no config.yaml.")
        siblings = (
            sorted(str(p) for p in path.parent.iterdir() if p.is_dir() and p.name[0] != ".")
            if path.parent.is_dir()
            else []
        )
        hint = did_you_mean(str(path), siblings) if siblings else "; 'greylag train' prints where its run folder is."
        raise UserError(f"There is no run folder '{name}'{hint}")

    def read_config(self) -> dict[str, Any]:
        """The run's configuration as plain data."""
        try:
            content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.config} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.config} holds no configuration.")
        return content

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration; a former one that differs is kept beside it, numbered."""
        if self.config.exists():
            if self.read_config() == dict(config):
                return
            number = 1
            while (former := self.path / f"config.{number}.yaml").exists():
                number += 1
            former.write_text(self.config.read_text(encoding="utf-8"), encoding="utf-8")
        head = f"# greylag {core.__version__}, {revision()}, {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=110)
        write_text_atomically(self.config, head + text)

    def read_metrics(self) -> dict[str, Any]:
        """What metrics.json holds; empty if it is not there yet."""
        try:
            content = json.loads(self.metrics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics} cannot be read ({error}); move it away to go on.") from error
        return content if isinstance(content, dict) else {}

    def merge_metrics(self, new: Mapping[str, Any]) -> None:
        """Add to metrics.json: dicts are merged, lists made longer, other values replaced; nothing else is lost."""
        merged = _merged(self.read_metrics(), new)
        write_text_atomically(self.metrics, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")

    def discard_if_unused(self) -> None:
        """Remove the folder if the run never got as far as writing a log or a checkpoint."""
        if not self.log.exists() and not self.checkpoints.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while training, so that two processes never write one run; a killed process lets go of it."""
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.shown} is being trained by another process; stop that one first.") from None
            except OSError:  # a file system without locks: go on without
                pass
            yield


def revision() -> str:
    """The git revision of this code, or "no git revision"."""
    folder = Path(core.__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return "no git revision"
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "no git revision"
    return f"revision {commit.strip() or 'unknown'}{' with local changes' if changes.strip() else ''}"


def first_process() -> bool:
    """Whether this process is the one that prints and writes; by the launcher's environment, before a Trainer is."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def shown_path(path: Path) -> str:
    """A path as one would type it from the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def write_text_atomically(path: Path, text: str) -> None:
    """The whole text or the file as it was, even if the disk is full or the process killed."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    return new
