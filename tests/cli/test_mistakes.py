"""A mistake gets one sentence with the nearest names and exit status 2; never a stack trace."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cli import main
from core.errors import UserError

POINTS = "train experiment=tiny/points"

MISTAKES = [
    ("trian", "did you mean 'train'?"),
    ("train", "Say what to train: greylag train experiment=NAME; there are: timeseries/co2, "),
    ("train tiny/points", "did you mean experiment=tiny/points?"),
    ("train experimnet=tiny/points", "no option 'experimnet'; did you mean 'experiment'?"),
    ("train experiment=tiny/pionts", "no experiment 'tiny/pionts'; did you mean 'tiny/points'?"),
    ("train app=visoin", "no app 'visoin'; did you mean 'vision'?"),
    (f"{POINTS} model.hiden=3", "no option 'model.hiden'; did you mean 'model.hidden'?"),
    (f"{POINTS} trainer.max_epoch=3", "did you mean 'max_epochs'"),
    (f"{POINTS} data.itmes=3", "did you mean 'items'?"),
    (f"{POINTS} task.nan_att=3", "did you mean 'nan_at'?"),
    (f"{POINTS} sede=3", "no option 'sede'; did you mean 'seed'?"),
    (f"{POINTS} +sede=3", "sede"),
    (f"{POINTS} seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer."),
    (f"{POINTS} trainer=gpuu", "no trainer 'gpuu'; did you mean 'gpu'?"),
    (f"{POINTS} trainer.devices=two", "trainer cannot be set up"),
    (f"{POINTS} trainer.callbacks=1", "set by greylag itself"),
    (f"{POINTS} optim=adam", "no optim 'adam'; did you mean 'adamw'?"),
    (f"{POINTS} optim.name=adamww", "no optimiser 'adamww'"),
    (f"{POINTS} optim.schedule=cosin", "expected one of cosine"),
    (f"{POINTS} ema=2", "expected a decay between 0 and 1"),
    (f"{POINTS} monitor.mode=up", "expected max or min"),
    (f"{POINTS} monitor.metric=val/acuracy", "did you mean 'val/accuracy'?"),
    (f"{POINTS} data.batch_size=0", "at least 1"),
    (f"{POINTS} task._target_=os.system", "not from an allowed package"),
    (f"{POINTS} task._target_=tinyapp.TinyTsak", "did you mean 'TinyTask'"),
    (f"{POINTS} task._target_=torch.nn.Identity", "expected a subclass of core.train.task.Task"),
    (f"{POINTS} 'model.hidden=[1,'", "cannot be read as key=value"),
    (f"{POINTS} runs_dir=/dev/null/x", "No run folder can be made"),
    (f"{POINTS} trainer=fsdp", "ema is not possible"),
    ("train -m experiment=tiny/points trainer=ddp_cpu2 seed=1,2", "submitit_slurm"),
    ("train run=nowhere", "no run folder 'nowhere'"),
    ("evaluate", "Say which run"),
    ("evaluate run=nowhere", "no run folder"),
    ("predict input=x", "Say which model"),
    ("predict run=x", "Say what to predict from"),
    ("predict model=./nowhere input=x", "holds no model"),
    ("export run=x", "Say where to"),
    ("export run=x to=y format=zip", "expected one of safetensors"),
    ("list model", "did you mean 'models'?"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes(
    words: str, sentence: str, tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("greylag: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*/*/*")) or "monitor.metric" in words, "an empty run folder was left behind"


def test_debug_shows_the_trace(tiny_app: Path) -> None:
    with pytest.raises(UserError):
        main(["train", "experiment=tiny/pionts", "--debug"])


def test_check_names_everything_at_once(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=tiny/points", "check=true"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main([*POINTS.split(), "check=true", "trainer.max_epoch=3", "data.foo=1", "ema=2"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("max_epoch", "data.foo", "ema is 2"))
    assert not list(tmp_path.iterdir())


def test_a_root_key_in_a_file_is_checked_too(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """`sede: 3` in an experiment must not pass silently."""
    folder = tmp_path / "own" / "experiment" / "mine"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - /experiment/tiny/points\nname: wrong\nsede: 3\n"
    (folder / "wrong.yaml").write_text(text)
    monkeypatch.setenv("GREYLAG_CONFIGS", f"{tiny_app}/configs:{tmp_path}/own")
    assert main(["train", "experiment=mine/wrong"]) == 2
    assert "no option 'sede'; did you mean 'seed'?" in capsys.readouterr().err


def test_broken_yaml_is_one_sentence(tiny_app: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "torn.yaml").write_text("name: [1,\nname: 2")
    monkeypatch.setenv("GREYLAG_CONFIGS", f"{tiny_app}/configs:{tmp_path}")
    assert main(["train", "experiment=torn"]) == 2
    said = capsys.readouterr().err
    assert "no valid YAML" in said
    assert "torn.yaml" in said


def test_from_the_shell(tiny_app: Path, greylag: Callable[..., Any]) -> None:
    done = greylag("train", "experiment=tiny/points", "model.hiden=3")
    assert done.returncode == 2
    assert done.stderr == "greylag: There is no option 'model.hiden'; did you mean 'model.hidden'?\n"
    assert done.stdout == ""
