"""The verbs, on the harness's test app."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cli import main
from core.cli.compose import compose_run, plain
from core.cli.places import first_comment, options_of
from core.train.runs import RunFolder

POINTS = ["train", "experiment=tiny/points", "trainer.max_epochs=1"]


@pytest.fixture
def run(tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    assert main(POINTS) == 0
    return RunFolder.open("runs")


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["train", "--help"], ["list"], ["export", "-h"], ["doctor", "-h"], ["--version"]]
)
def test_help_and_list_need_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from core.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'hydra', 'numpy'} & set(sys.modules); print('HEAVY', heavy); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if words else 2)
    assert "HEAVY set()" in done.stdout
    assert len(done.stdout.splitlines()) < 80


def test_list_says_what_each_is(tiny_app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "tiny/points" in said
    assert "A perceptron on 96 points" in said
    assert "vision/digits" in said


@pytest.mark.parametrize(
    "group", ["app", "model", "data", "experiment", "trainer", "optim", "logger", "callbacks", "debug"]
)
def test_every_configuration_says_what_it_is(group: str, repository: Path) -> None:
    for name in options_of(group):
        assert first_comment(repository / "configs" / group / f"{name}.yaml"), f"configs/{group}/{name}.yaml"


@pytest.mark.parametrize("experiment", sorted(options_of("experiment")))
@pytest.mark.parametrize("extra", [[], ["trainer=gpu"], ["debug=fast"], ["debug=overfit", "logger=wandb"]], ids=str)
def test_every_experiment_is_sound(experiment: str, extra: list[str]) -> None:
    from core.cli.check import problems_of

    assert problems_of(plain(compose_run([f"experiment={experiment}", *extra]))) == []


def test_debug_presets_run(tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=tiny/points", "debug=fast"]) == 0
    assert RunFolder.open("runs").read_metrics()["steps"] == 2
    assert main(["train", "experiment=tiny/points", "debug=overfit", "model.plain=true", "optim.lr=0.1"]) == 0
    rows = (RunFolder.open("runs").log / "history.csv").read_text().splitlines()
    assert float(rows[-1].rpartition(",")[2]) < 0.1 or "train/loss" not in rows[0].rpartition(",")[2]


def test_evaluate_adds_and_never_loses(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.merge_metrics({"mine": 1})
    assert main(["evaluate", "run=runs/tiny", "split=test", "data.eval_batch_size=5", "weights=best"]) == 0
    assert main(["evaluate", "run=runs/tiny/points"]) == 0
    metrics = run.read_metrics()
    assert metrics["mine"] == 1
    first, second = metrics["evaluations"]
    assert first["overrides"] == ["data.eval_batch_size=5"]
    assert "val/loss" not in first["metrics"]
    assert second["metrics"] == pytest.approx(metrics["metrics"])
    assert first["metrics"]["test/accuracy"] == pytest.approx(second["metrics"]["test/accuracy"])
    assert "accuracy" in capsys.readouterr().out
    assert main(["evaluate", "run=runs", "data.item=3"]) == 2
    assert main(["evaluate", "run=runs", "app=vision"]) == 2


def test_predict(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.json").write_text(json.dumps([[1.0] * 8, [-1.0] * 8]))
    assert main(["predict", "run=runs", "input=points.json", "repeat=2", "output=answers.json"]) == 0
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 4
    assert main(["predict", f"model={run.model}", "input=points.json", "device=cpu"]) == 0
    assert main(["predict", "run=runs", "input=none.json"]) == 2
    assert main(["predict", "run=runs", "input=points.json", "repeet=2"]) == 2
    assert "did you mean 'repeat'" in capsys.readouterr().err


def test_a_model_s_own_words_are_not_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The app named in a (downloaded) config.json is looked up among ours; a class named there is not read."""
    config = json.loads((run.model / "config.json").read_text())
    (run.model / "config.json").write_text(json.dumps({**config, "app": "os.system", "pipeline": "os.system"}))
    assert main(["predict", f"model={run.model}", "input=x"]) == 2
    assert "is of the app 'os.system'" in capsys.readouterr().err


def test_export(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run=runs", "to=out"]) == 0
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (run.model / name).read_bytes()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["export", "run=runs", "to=out"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["export", "run=runs", "to=out", "force=true"]) == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_graph_that_differs_is_not_kept(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run=runs", "to=out", "format=torch_export", "tolerance=-1"]) == 2
    assert "not kept" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.pt2").exists()


def test_onnx_without_onnx_is_one_sentence(run: RunFolder, monkeypatch: Any, capsys: Any) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "run=runs", "to=out", "format=onnx"]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_a_sweep_survives_a_bad_point(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *POINTS[1:], "task.nan_at=1,null"]) == 0
    assert "The sweep goes on." in capsys.readouterr().err
    runs = sorted(tmp_path.glob("runs/sweeps/*/[01]"))
    assert [RunFolder(path).read_metrics()["status"] for path in runs] == ["unfinished", "finished"]


def test_a_broken_report_does_not_cost_the_run(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import tinyapp

    def broken(*arguments: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tinyapp.TinyTask, "write_report", broken)
    assert main(POINTS) == 0
    run = RunFolder.open("runs")
    assert run.read_metrics()["status"] == "finished"
    assert "no ink" in (run.report / "error.txt").read_text()
    assert "no ink" in capsys.readouterr().out


def test_demo_goes_the_whole_way(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail("no screen here"))
    assert main(["demo", *POINTS[1:]]) == 0
    said = capsys.readouterr().out
    assert "Evaluating runs/tiny/points/" in said
    assert "report/index.html" in said.splitlines()[-1]


def test_a_run_that_did_not_end_has_no_model(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.model / "config.json").unlink()
    assert main(["predict", "run=runs", "input=x"]) == 2
    assert "greylag train run=" in capsys.readouterr().err


def test_from_the_shell(tiny_app: Path, greylag: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The output holds what to do next, and nothing of Lightning's."""
    done = greylag(*POINTS)
    assert done.returncode == 0
    assert done.stderr == ""
    for part in ("epoch 1/1", "/s  0:0", "parameters", "greylag predict run=runs/tiny/points/", "report/index.html"):
        assert part in done.stdout
