"""Fixtures that every test may ask for: outside data, one thread, and uninitialised memory that shows itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported, and inherited by every process a test starts: many small tests share few cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# A backend chosen in the developer's shell must not decide what the tests test.
os.environ.pop("GREYLAG_WKV", None)

import pytest  # noqa: E402
import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("golden/x.bin")` is that file's path, or the test is skipped with the reason.

    The folder is `$GREYLAG_SHARED`, else `shared/data` beside the repository.
    """
    folder = Path(os.environ.get("GREYLAG_SHARED") or REPOSITORY.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{path} is missing; set GREYLAG_SHARED to the folder that holds {name}")
        return path

    return find


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state, whatever ran before it or beside it."""
    torch.manual_seed(0)


@pytest.fixture
def nan_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make uninitialised memory visible: `torch.empty` and its kin hand out NaN instead of what lay there.

    The idea is flash-linear-attention's (tests/conftest.py): a kernel that forgets to write a value, or reads
    one before writing it, then fails each time and not only on an unlucky day. Integer tensors get -1.
    """

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if tensor.device.type == "meta" or isinstance(tensor, torch._subclasses.FakeTensor):
                return tensor
            with torch.no_grad():
                if tensor.is_floating_point() or tensor.is_complex():
                    return tensor.fill_(float("nan"))
                return tensor.fill_(True) if tensor.dtype is torch.bool else tensor.fill_(-1)

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def tiny_app(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The harness's test app (tests/train/tinyapp) can be named by configurations, here and in child processes."""
    folder = REPOSITORY / "tests" / "train" / "tinyapp"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )
    monkeypatch.setenv("GREYLAG_TARGETS", "tinyapp")
    monkeypatch.setenv("GREYLAG_CONFIGS", str(folder / "configs"))
    return folder


@pytest.fixture
def greylag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`greylag("train", ...)` runs the command in a process of its own, in `tmp_path`, and returns what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "core.cli", *words],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run
