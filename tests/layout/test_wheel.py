"""The wheel is whole: core, apps and configs side by side, nothing else, and it runs from where it is unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the hatchling that is installed: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("greylag-*.whl")
    return found


def test_contents(wheel: Path, repository: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {name.split("/")[0] for name in names} == {"core", "apps", "configs", info}
    shipped = {
        str(path.relative_to(repository))
        for folder in ("core", "apps", "configs")
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "local" not in path.parts
    }
    assert shipped <= set(names)
    assert {"core/py.typed", "apps/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".ckpt", ".safetensors"))]


def test_runs_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """The command line finds the configs that came with the wheel, not those of a clone."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import core; print(core.__file__)").startswith(str(tmp_path))
    (tmp_path / "configs" / "experiment" / "vision" / "only_here.yaml").write_text("# @package _global_\n# Only here\n")
    assert "only_here" in run("-m", "core.cli", "list")
