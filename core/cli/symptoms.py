"""What ``greylag doctor`` looks at: a function for each section, which may raise."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.cli.doctor import BAD, NOTE, OFF, OK, Line
from core.cli.machine import compiler_version, cores_allowed, cpu_name, driver_version
from core.cli.packages import declared, first_line, import_problem, installed, pip_command
from core.cli.places import config_folders, options_of
from core.cli.variables import VARIABLES, problem_of, writable
from core.errors import MissingExtra, UserError, did_you_mean

EXTRAS = {
    "vision": "the embedded digits: data=vision/digits, greylag demo",
    "hf": "data sets of the Hugging Face Hub: data=vision/hf",
    "timeseries": "forecasting: apps.timeseries",
    "onnx": "greylag export format=onnx",
    "bench": "rivals and data of the forecasting benchmarks",
    "dev": "tests, lint and the other benchmarks",
    "wandb": "logger=wandb",
    "hydra-submitit-launcher": "train -m on SLURM: hydra/launcher=submitit_slurm",
}
"""What an extra of pyproject.toml, or a package that is none, makes possible."""

NEED_TORCH = ("devices", "compiled kernel", "backends", "apps", "folders")
"""Sections that can say nothing where torch cannot be imported."""

_EXACT = 1e-4  # relative; float32 gives 1e-6, a miscompiled kernel anything


def versions() -> list[Line]:
    """Python, Greylag, and the packages it requires: there, in range, importable."""
    from packaging.specifiers import SpecifierSet

    import core

    wanted = declared()
    python = platform.python_version()
    fits = SpecifierSet(wanted.python).contains(python, prereleases=True)
    advice = None if fits else f"Python {python} is outside {wanted.python}: make an environment with another Python."
    lines = [
        Line("greylag", f"{core.__version__}  {Path(core.__file__).resolve().parents[1]}"),
        Line("python", f"{python}  {sys.executable}", OK if fits else BAD, advice),
    ]
    torch_works = True
    for requirement in wanted.required:  # torch first: where it is broken, so is nearly all that imports it
        version, problem = installed(requirement)
        # fla is imported where it can be used: elsewhere that takes seconds and proves nothing
        if problem is None and torch_works and (requirement.name != "flash-linear-attention" or _sees_gpu()):
            problem = import_problem(requirement)
        torch_works = torch_works and not (requirement.name == "torch" and problem)
        shown = f"{version or 'missing':<14} {requirement.specifier}"
        lines.append(Line(requirement.name, shown, BAD if problem else OK, problem))
    return [*lines, *_carried("triton")]


def devices() -> list[Line]:
    """CPU, cores, threads, GPUs."""
    import torch

    lines = [
        Line("CPU", f"{cpu_name()}, {platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}"),
        Line("cores", f"{cores_allowed()} allowed of {os.cpu_count()}, torch's threads: {torch.get_num_threads()}"),
    ]
    kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if torch.cuda.is_available():
        driver = driver_version()
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            lines.append(
                Line(
                    f"cuda:{index}",
                    f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability "
                    f"{found.major}.{found.minor}, torch for {kind}, driver {driver or 'unknown'}",
                )
            )
    elif not torch.version.cuda and not torch.version.hip:
        lines.append(Line("GPU", "this torch is built without CUDA and ROCm", OFF))
    elif driver := driver_version():
        advice = f"Install a torch that fits driver {driver} (pytorch.org), or a newer driver."
        lines.append(Line("GPU", f"one is here, but torch for {kind} cannot use it", NOTE, advice))
    else:
        lines.append(Line("GPU", f"torch for {kind} sees none", OFF))
    if torch.backends.mps.is_available():
        lines.append(Line("mps", "Apple's GPU"))
    elif platform.system() == "Darwin":
        lines.append(Line("mps", "this torch or this machine has none", OFF))
    return lines


def kernel() -> list[Line]:
    """The compiler, and the libraries made with it."""
    from core.layers import step
    from core.wkv import build

    compiler = build.find_compiler()
    if compiler is None:
        return [Line("compiler", "none found", NOTE, f"For the fast CPU kernel {build.ADVICE}.")]
    lines = [Line("compiler", f"{compiler}, {compiler_version(compiler)}")]
    if (wanted := os.environ.get("CXX")) and shutil.which(wanted) is None:
        lines.append(Line("CXX", wanted, NOTE, "This compiler cannot be found; unset CXX or give its path."))
    lines.append(_library("operator", build.library))
    lines.append(_library("one-token step", lambda: build.load(Path(step.__file__).with_name("step.cpp"), ())))
    if (handle := build.library().handle) is not None:
        lanes = handle.wkv7_lanes()
        lines.append(Line("vector width", f"{lanes} float32 numbers ({32 * lanes} bits)"))
    return lines


def backends() -> list[Line]:
    """Each way to compute the operator, and which one is taken where."""
    import torch

    from core.wkv import available_backends

    lines: list[Line] = []
    for name, reason in available_backends().items():
        if reason is not None:
            lines.append(Line(name, reason, NOTE if name == "native" or torch.cuda.is_available() else OFF))
        elif name in ("reference", "chunked", "native"):
            lines.append(_self_test(name))
        else:
            lines.append(Line(name, "can run here"))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        lines.append(_chosen("cpu", dtype))
    if torch.cuda.is_available():
        lines += [_chosen("cuda", torch.float32), _chosen("cuda", torch.bfloat16)]
    if torch.backends.mps.is_available():
        lines.append(_chosen("mps", torch.float32))
    return lines


def environment() -> list[Line]:
    """GREYLAG_* variables: their values, and whether they can be meant."""
    lines: list[Line] = []
    for name, (meaning, _) in VARIABLES.items():
        if value := os.environ.get(name):
            problem = problem_of(name)
            lines.append(Line(name, value, BAD if problem else OK, problem))
        else:
            lines.append(Line(name, f"not set ({meaning})", OFF))
    for name in sorted(os.environ):
        if name.startswith("GREYLAG_") and name not in VARIABLES:
            near = did_you_mean(name, list(VARIABLES), shown=0)
            lines.append(Line(name, os.environ[name], NOTE, f"Greylag reads no variable {name}{near}"))
    return lines


def apps() -> list[Line]:
    """The apps that configurations register, and whether every class they name can be imported."""
    import yaml

    from core.train.instantiate import find_class

    lines: list[Line] = []
    for app, line in options_of("app").items():
        files = (folder / "app" / f"{app}.yaml" for folder in config_folders())
        problem = None
        try:
            content = next(file for file in files if file.is_file()).read_text(encoding="utf-8")
            for dotted in _class_names(yaml.safe_load(content)):
                find_class(dotted)
        except MissingExtra:
            lacking = [wanted for wanted in declared().extras.get(app, []) if installed(wanted).problem]
            lines.append(Line(app, line, OFF, pip_command(lacking)))
            continue
        except UserError as error:
            problem = f"The app {app} cannot be used: {error}"
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever an app's import raises
            problem = f"The app {app} cannot be imported ({first_line(error)}): mend what its import names."
        lines.append(Line(app, line, BAD if problem else OK, problem))
    return lines


def folders() -> list[Line]:
    """Where Greylag writes: can it, and is there room."""
    from core.wkv.build import wanted_cache_folder

    return [
        _folder("cache", wanted_cache_folder(), "Set GREYLAG_CACHE to a folder that can be written."),
        _folder("runs", Path("runs").resolve(), "Start greylag elsewhere, or say runs_dir=FOLDER."),
    ]


def extras() -> list[Line]:
    """Packages that are no requirement, what they make possible, and how to get them."""
    from packaging.requirements import Requirement

    wanted = declared().extras
    lines: list[Line] = []
    for name in [*wanted, *(name for name in EXTRAS if name not in wanted)]:
        requirements = wanted.get(name) or [Requirement(name)]
        lacking = [requirement for requirement in requirements if installed(requirement).problem]
        purpose = EXTRAS.get(name, ", ".join(requirement.name for requirement in requirements))
        lines.append(Line(name, purpose, OFF if lacking else OK, pip_command(lacking) if lacking else None))
    return lines


SECTIONS: dict[str, Callable[[], list[Line]]] = {
    "versions": versions,
    "devices": devices,
    "compiled kernel": kernel,
    "backends": backends,
    "environment": environment,
    "apps": apps,
    "folders": folders,
    "extras": extras,
}


# ------------------------------------------------------------------------------------------------ what they ask


def _carried(*names: str) -> list[Line]:
    """Packages that others bring along: their versions."""
    from importlib.metadata import PackageNotFoundError, version

    lines: list[Line] = []
    for name in names:
        try:
            lines.append(Line(name, version(name)))
        except PackageNotFoundError:
            lines.append(Line(name, "not installed (comes with torch for CUDA on Linux)", OFF))
    return lines


def _sees_gpu() -> bool:
    try:
        import torch

        return torch.cuda.is_available()
    except Exception:  # noqa: BLE001  a broken torch has its own line
        return False


def _library(name: str, load: Callable[[], Any]) -> Line:
    """A compiled library: where it lies, and whether this call made it."""
    begun = time.time()
    handle, reason = load()
    if handle is None:
        return Line(name, f"missing: {reason}", NOTE)
    path = Path(handle._name)
    now = path.stat().st_mtime >= begun
    return Line(name, f"{path}, {f'compiled now, in {time.time() - begun:.1f} s' if now else 'compiled earlier'}")


def _self_test(name: str) -> Line:
    """The backend's answer to a small question, beside the recurrence in float64."""
    import torch

    from core.wkv import wkv7

    draw = torch.Generator().manual_seed(0)
    r, k, v, decay, key = (torch.randn(1, 40, 2, 16, generator=draw, dtype=torch.float64) for _ in range(5))
    kk = torch.nn.functional.normalize(key, dim=-1)
    inputs = (r, -0.6 * decay.sigmoid(), k, v, -kk, 0.5 * kk)
    with torch.no_grad():
        truth, _ = wkv7(*inputs, backend="reference")
        found, _ = wkv7(*(x.float() for x in inputs), backend=name)
    error = float((found - truth).norm() / truth.norm())
    if error <= _EXACT:
        return Line(name, f"works (relative error {error:.0e} in float32)")
    advice = f"The backend '{name}' computes wrongly (relative error {error:.0e}): set GREYLAG_WKV to another one."
    return Line(name, "computes wrongly", BAD, advice)


def _chosen(device: str, dtype: Any) -> Line:
    import torch

    from core.wkv import operator

    what = f"{device} {str(dtype).removeprefix('torch.')}"
    try:
        name = operator._choose(torch.empty(1, 64, 1, 64, device=device, dtype=dtype), None)
    except ValueError as error:
        return Line(what, "none", BAD, problem_of("GREYLAG_WKV") or f"{what} has no backend: {error}.")
    return Line(what, f"takes '{name}'")


def _class_names(config: Any) -> Iterator[str]:
    """Every dotted name of a class in an app's configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("_target_", "pipeline") and isinstance(value, str):
                yield value
            else:
                yield from _class_names(value)


def _folder(name: str, path: Path, advice: str) -> Line:
    if not writable(path):
        return Line(name, f"{path} cannot be written", NOTE, advice)
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free / 2**30
    if free < 1:
        return Line(name, f"{path}, {free:.1f} GiB free", NOTE, f"The disk is nearly full. {advice}")
    return Line(name, f"{path}, {free:.1f} GiB free")
