"""`greylag doctor`: tells what is broken with its remedy, in an exit status too, and never falls ill itself."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.cli import doctor, main, packages, symptoms, variables
from core.cli.doctor import BAD, NOTE, OFF, OK, Line
from core.wkv import build, operator

Report = dict[str, dict[str, Line]]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer's shell sets, the tests examine the same."""
    for name in variables.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported that is not there yet: for tests that are not about the packages."""
    monkeypatch.setattr(symptoms, "import_problem", lambda requirement: None)


def found() -> Report:
    return {section: {line.name: line for line in lines} for section, lines in doctor.examine().items()}


def problems() -> list[str]:
    return doctor.problems_of(doctor.examine())


def test_what_greylag_needs_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in (
        *symptoms.SECTIONS,
        f"torch  .* {re.escape(torch.__version__.split('+')[0])}",
        "takes '",
        "apps|vision",
    ):
        assert re.search(word, said), word
    assert said.endswith("What Greylag needs works here.\n")
    assert not re.search(r"[ \t]$", said, re.MULTILINE)


def test_json_says_the_same(light: None, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert main(["doctor", "--json"]) == 0
    assert time.monotonic() - begun < 5.0, "beyond imports it must answer at once"
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert said["problems"] == []
    assert list(said["sections"]) == list(symptoms.SECTIONS)
    for line in (line for lines in said["sections"].values() for line in lines):
        assert set(line) == {"name", "value", "state", "advice"}
        assert line["state"] in (OK, OFF, NOTE, BAD)
    backends = {line["name"]: line["state"] for line in said["sections"]["backends"]}
    assert set(operator.BACKENDS) <= set(backends)
    assert backends["reference"] == backends["chunked"] == OK


def test_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 2
    assert "did you mean '--json'?" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- packages


def _break(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    real = importlib.metadata.version

    def answer(wanted: str) -> str:
        if wanted != name:
            return real(wanted)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(wanted)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "timm is not installed: pip install 'timm>=1.0.22'"),
        ("1.0.3", "timm 1.0.3 is outside >=1.0.22: pip install 'timm>=1.0.22'"),
    ],
)
def test_a_package_missing_or_too_old(
    light: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, sentence: str
) -> None:
    _break(monkeypatch, "timm", version)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.endswith(f"To mend:\n  {sentence}\n")
    assert re.search(rf"BAD +timm +{version or 'missing'}", said)


@pytest.mark.parametrize("body", ["raise RuntimeError('operator x does not exist\\nand more')", "exit(3)"])
def test_a_package_that_breaks_when_imported(body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from packaging.requirements import Requirement

    (tmp_path / "sickly.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = packages.import_problem(Requirement("sickly>=2"))
    assert problem is not None
    assert "\n" not in problem
    assert "'import sickly' fails" in problem
    assert "pip install --force-reinstall 'sickly>=2'" in problem


def test_a_package_that_lacks_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from packaging.requirements import Requirement

    (tmp_path / "sickly.py").write_text("import not_there.deeper")
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = "sickly needs the module 'not_there', which is missing: pip install it."
    assert packages.import_problem(Requirement("sickly")) == expected


def test_without_torch_there_is_one_problem_and_no_trace(repository: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from core.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "torch is installed but 'import torch' fails" in done.stdout.split("To mend:")[1]
    assert done.stdout.split("To mend:")[1].count("\n") == 2


def test_requirements_as_a_wheel_tells_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside an installed package there is no pyproject.toml, only its metadata, as hatchling writes it."""
    lines = [
        "torch<2.15,>=2.11",
        "not-for-us>=1; sys_platform == 'amiga'",
        "for-us>=1; sys_platform != 'amiga'",
        "onnx>=1.17; extra == 'onnx'",
        "greylag[onnx]; extra == 'dev'",
        "ruff>=0.9; extra == 'dev'",
    ]
    monkeypatch.setattr(packages.core, "__file__", str(tmp_path / "core" / "__init__.py"))
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    wheel = packages.declared()
    assert wheel.python == ">=3.11"
    assert [wanted.name for wanted in wheel.required] == ["torch", "for-us"]
    assert {name: [wanted.name for wanted in extra] for name, extra in wheel.extras.items()} == {
        "onnx": ["onnx"],
        "dev": ["ruff"],
    }


def test_every_extra_says_what_it_is_for() -> None:
    assert set(packages.declared().extras) <= set(symptoms.EXTRAS)


def test_an_extra_that_is_not_here_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "onnx", None)
    line = next(line for line in symptoms.extras() if line.name == "onnx")
    assert line == Line("onnx", "greylag export format=onnx", OFF, "pip install 'onnx>=1.17'")


# ----------------------------------------------------------------------------------------- kernel and backends


def test_without_a_compiler_it_works_with_a_note(light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    reason = build.library.__wrapped__().reason
    monkeypatch.setattr(build, "library", lambda: build.Library(None, reason))
    report = found()
    assert report["compiled kernel"]["compiler"].state == NOTE
    assert "apt install g++" in (report["compiled kernel"]["compiler"].advice or "")
    assert report["backends"]["native"].state == NOTE
    assert report["backends"]["cpu float32"].value == "takes 'chunked'"
    assert problems() == []


def test_the_libraries_and_whether_they_were_compiled_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    first, second = ({line.name: line for line in symptoms.kernel()} for _ in range(2))
    for name in ("operator", "one-token step"):
        assert first[name].value.startswith(str(tmp_path))
        assert "compiled now, in " in first[name].value
        assert "compiled earlier" in second[name].value
    assert re.match(r"(4|8|16) float32 numbers", first["vector width"].value)


def test_a_backend_that_computes_wrongly_is_told(light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(r: Any, log_w: Any, k: Any, v: Any, *rest: Any) -> Any:
        return v.clone(), None

    monkeypatch.setitem(operator.BACKENDS, "chunked", operator.Backend(wrong, lambda: None))
    assert [line.split("(")[0] for line in problems()] == ["The backend 'chunked' computes wrongly "]


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Card", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(symptoms, "driver_version", lambda: "580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    unused = {line.name: line for line in symptoms.devices()}["GPU"]
    assert unused.state == NOTE
    assert "driver 580.1" in (unused.advice or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    lines = {line.name: line for line in symptoms.devices()}
    for word in ("Card", "80 GiB", "capability 9.0", "driver 580.1", "CUDA 13.0"):
        assert word in lines["cuda:1"].value


# ---------------------------------------------------------------------------- variables, apps, folders, mishaps


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("GREYLAG_WKV", "chunkd", "no backend; did you mean 'chunked'?"),
        ("GREYLAG_CONFIGS", "/nowhere", "GREYLAG_CONFIGS names '/nowhere', which is no folder."),
        ("GREYLAG_TARGETS", "core, not_there", "GREYLAG_TARGETS names 'not_there', which is no package"),
        ("GREYLAG_SHARED", "/nowhere", "GREYLAG_SHARED is '/nowhere', which is no folder"),
        ("GREYLAG_CACHE", f"{__file__}/inside", "cannot be written: name another folder"),
    ],
)
def test_a_wrong_variable_is_one_problem(
    light: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    said = problems()
    assert len(said) == 1
    assert sentence in said[0]
    assert "\n" not in said[0]


def test_right_variables_and_one_misspelt(light: None, monkeypatch: pytest.MonkeyPatch, tiny_app: Path) -> None:
    monkeypatch.setenv("GREYLAG_WKV", "reference")
    monkeypatch.setenv("GREYLAG_WVK", "native")
    report = found()
    assert problems() == []
    assert report["environment"]["GREYLAG_WKV"] == Line("GREYLAG_WKV", "reference")
    assert report["environment"]["GREYLAG_WVK"].state == NOTE
    assert "did you mean 'GREYLAG_WKV'" in (report["environment"]["GREYLAG_WVK"].advice or "")
    assert report["backends"]["cpu float32"].value == "takes 'reference'"


def test_every_variable_that_the_code_reads_is_known(repository: Path) -> None:
    files = [file for folder in ("core", "apps") for file in (repository / folder).glob("**/*.py")]
    read = {name for file in files for name in re.findall(r"\bGREYLAG_[A-Z_]+\b", file.read_text(encoding="utf-8"))}
    assert read == set(variables.VARIABLES)


def test_an_app_that_cannot_be_imported(light: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "mine.yaml").write_text("# Mine\npipeline: sickly.Pipeline\ntask: {_target_: sickly.Task}\n")
    (tmp_path / "sickly.py").write_text("raise ZeroDivisionError('no luck')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GREYLAG_CONFIGS", str(tmp_path))
    monkeypatch.setenv("GREYLAG_TARGETS", "sickly")
    report = found()
    assert report["apps"]["vision"].state == OK
    assert report["apps"]["mine"].state == BAD
    assert "ZeroDivisionError: no luck" in (report["apps"]["mine"].advice or "")


def test_an_app_whose_extra_is_missing_is_no_illness(
    light: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "onnx.yaml").write_text("# Mine\ntask: {_target_: lacking.Task}\n")
    (tmp_path / "lacking.py").write_text("from core.errors import require_extra\nrequire_extra('onnx', 'no_such')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GREYLAG_CONFIGS", str(tmp_path))
    monkeypatch.setenv("GREYLAG_TARGETS", "lacking")
    _break(monkeypatch, "onnx", None)
    assert found()["apps"]["onnx"] == Line("onnx", "Mine", OFF, "pip install 'onnx>=1.17'")


def test_folders_that_cannot_be_written_or_are_nearly_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file where a folder should be")
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "a" / "b"))
    cache, runs = symptoms.folders()
    assert cache.state == OK
    assert not (tmp_path / "a").exists(), "looking must not make anything"
    assert runs.state == NOTE
    assert "runs_dir=FOLDER" in (runs.advice or "")
    monkeypatch.setattr(symptoms.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert symptoms.folders()[0].state == NOTE


@pytest.mark.parametrize(
    "mishap", [RuntimeError("one\ntwo"), SystemExit(4), ModuleNotFoundError("x", name="packaging")]
)
def test_a_section_that_fails_is_a_line(mishap: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail() -> list[Line]:
        raise mishap

    monkeypatch.setattr(symptoms, "SECTIONS", {"folders": symptoms.folders, "devices": fail})
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "The devices could not be examined" in said
    assert "folders" in said
    if isinstance(mishap, ModuleNotFoundError):
        assert "pip install packaging" in said
