"""Compiling a C++ kernel at first use, once per source, compiler and CPU.

The library lies in ``$GREYLAG_CACHE``, else ``$XDG_CACHE_HOME/greylag`` or ``~/.cache/greylag``. A lock lets one of
several processes compile while the others wait, and the finished file is moved into place whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

BLOCK = 16
"""Steps per block, as in cpp/call.h; checked when the library is loaded."""

SOURCE = Path(__file__).with_name("cpp") / "wkv7.cpp"
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
ADVICE = "install one (Debian: apt install g++; macOS: xcode-select --install) or name it in CXX"


class Library(NamedTuple):
    """The loaded kernel, or the reason why there is none."""

    handle: ctypes.CDLL | None
    reason: str | None

    def require(self) -> ctypes.CDLL:
        """The loaded kernel; raises RuntimeError with the reason if there is none."""
        if self.handle is None:
            raise RuntimeError(f"the native WKV kernel cannot run here: {self.reason}")
        return self.handle


@cache
def library() -> Library:
    """The WKV-7 kernel, see :func:`load`."""
    loaded = load(SOURCE, ("wkv7_forward", "wkv7_backward"))
    assert loaded.handle is None or loaded.handle.wkv7_block() == BLOCK
    return loaded


def load(source: Path, functions: Sequence[str], flags: Sequence[str] = ()) -> Library:
    """Compile `source` if need be, load it, look up `functions`, which take one pointer and return nothing.

    `flags` are added to the compiler's.

    Never raises: what went wrong is the reason.
    """
    compiler = find_compiler()
    if os.name != "posix":
        return Library(None, f"it is built with GCC or Clang on Linux or macOS, this is {platform.system()}")
    if compiler is None:
        return Library(None, f"no C++ compiler was found: {ADVICE}")
    try:
        path = _compiled(compiler, source, flags)
        handle = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[:200])
        return Library(None, f"{compiler} could not compile it ({first}): {ADVICE}")
    except OSError as error:
        return Library(None, f"it could not be built or loaded ({error})")
    for name in functions:
        function = getattr(handle, name)
        function.argtypes, function.restype = [ctypes.c_void_p], None
    return Library(handle, None)


def find_compiler() -> str | None:
    """$CXX, else the first of the usual names on the PATH."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _cpu() -> str:
    """What -march=native depends on: the model and its feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def _compiled(compiler: str, source: Path, flags: Sequence[str]) -> Path:
    target = ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    recipe = "\n".join((*FLAGS, *target, *flags, version, platform.machine(), _cpu())).encode()
    files = sorted(path for path in source.parent.iterdir() if path.suffix in (".cpp", ".h"))
    content = b"".join(path.read_bytes() for path in files)
    key = f"{source.stem}-{hashlib.sha256(content + recipe).hexdigest()[:20]}"
    folder = cache_folder()
    path = folder / f"{key}.so"
    with _lock(folder / f"{key}.lock"):
        if not path.is_file():
            partial = folder / f".{key}.{os.getpid()}.so"
            command = [compiler, *FLAGS, *target, *flags, str(source), "-o", str(partial)]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    return path


def cache_folder() -> Path:
    """Where libraries are kept; a private temporary folder where the home folder cannot be written."""
    folder = wanted_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="greylag-"))  # a shared one could hold another user's library


def wanted_cache_folder() -> Path:
    """Where libraries are to be kept, whether or not it is there and can be written."""
    if base := os.environ.get("GREYLAG_CACHE"):
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "greylag"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
