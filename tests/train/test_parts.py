"""Optimisers, schedules, averages, instantiation, run folders, pipelines: the harness's small parts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import MissingExtra, UserError, did_you_mean, require_extra
from core.pipeline import Pipeline
from core.train.averaging import ema_update
from core.train.instantiate import check_target, find_class, instantiate, parameters_of
from core.train.optim import build_optimizer, schedule_factor
from core.train.runs import RunFolder
from core.train.summary import metrics_table, state_bytes


def test_schedule_warms_up_and_decays() -> None:
    factor = schedule_factor({"schedule": "cosine", "warmup": 10, "min_lr": 0.1}, 110)
    assert [round(factor(step), 3) for step in (0, 9, 10, 60, 110, 500)] == [0.091, 0.909, 1.0, 0.55, 0.1, 0.1]
    share = schedule_factor({"schedule": "linear", "warmup": 0.1}, 100)
    assert (share(10), share(55)) == (1.0, 0.5)
    assert schedule_factor({"schedule": "constant"}, float("inf"))(10**6) == 1.0


@pytest.mark.parametrize("optim", [{"schedule": "cosin"}, {"warmup": -1}, {"min_lr": 2}])
def test_wrong_schedules_are_refused(optim: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="optim"):
        schedule_factor(optim, 10)


def test_optimiser_by_name_on_the_core_s_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = build_optimizer(model, {"name": "adamw", "lr": 0.1, "weight_decay": 0.3, "betas": [0.5, 0.6]})
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"matrix": 0.3, "vector": 0.0}
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        build_optimizer(model, {"name": "adamww"})
    with pytest.raises(UserError, match="does not take"):
        build_optimizer(model, {"name": "adamw", "wings": 2})


def test_average_warms_up_and_copies_integers() -> None:
    update = ema_update(0.9)
    average, current = torch.zeros(2), torch.ones(2)
    update([average], [current], torch.tensor(1))
    assert average[0] == pytest.approx(1 - 2 / 11)
    average.zero_()
    update([average], [current], torch.tensor(10_000))
    assert average[0] == pytest.approx(0.1)
    counter = torch.tensor(3)
    update([counter], [torch.tensor(8)], torch.tensor(5))
    assert counter == 8


class Base:
    def __init__(self, size: int, colour: str = "grey") -> None:
        self.size, self.colour = size, colour


class Derived(Base):
    def __init__(self, *, wings: Any = 2, **options: Any) -> None:
        super().__init__(**options)
        self.wings = wings


def test_options_are_checked_through_base_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    names, required, open_ended = parameters_of(Derived)
    assert (set(names), required, open_ended) == ({"wings", "size", "colour"}, [], False)
    monkeypatch.setenv("GREYLAG_TARGETS", __name__.partition(".")[0])
    name = f"{__name__}.Derived"
    built = instantiate(
        {"_target_": name, "size": 1, "wings": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}},
        "x",
    )
    assert isinstance(built.wings, nn.Linear)
    with pytest.raises(UserError, match=r"no option 'x\.colour_'.*did you mean 'colour'"):
        check_target({"_target_": name, "colour_": 1}, "x")
    with pytest.raises(UserError, match="lacks size"):
        check_target({"_target_": f"{__name__}.Base"}, "x")


class Fussy:
    def __init__(self, size: int) -> None:
        raise ValueError(f"size must be even, got {size}")


class Needy:
    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'wings'", name="wings")


def test_what_constructors_say_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_TARGETS", __name__.partition(".")[0])
    with pytest.raises(UserError, match="model.part: size must be even, got 3"):
        instantiate({"_target_": f"{__name__}.Fussy", "size": 3}, "model.part")
    with pytest.raises(UserError, match="'logger.x' needs a package that is not installed: wings"):
        instantiate({"_target_": f"{__name__}.Needy"}, "logger.x")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "Linear",
        "torch.load",
        "torch.nn.Lineer",
        "torch.nowhere.X",
        "core.train.session.Path",
    ],
)
def test_only_known_classes_are_built(name: str) -> None:
    with pytest.raises(UserError, match="_target_"):
        find_class(name)


def test_did_you_mean() -> None:
    assert did_you_mean("widht", ["width", "depth"]) == "; did you mean 'width'?"
    assert did_you_mean("zzz", ["a", "b"]) == "; there are: a, b."
    assert did_you_mean("zzz", []) == "."


def test_a_missing_extra_is_told_with_its_command() -> None:
    require_extra("vision", "json", "torch")
    sentence = r"^apps\.vision needs no_such and nor_this: pip install 'greylag\[vision\]'\.$"
    with pytest.raises(MissingExtra, match=sentence):
        require_extra("vision", "no_such", "json", "nor_this")


def make_folder(parent: str) -> str:
    return str(RunFolder.create(parent, "app", "name").path)


def test_run_folders_never_collide(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_folder, [str(tmp_path)] * 8))
    assert len(set(made)) == 8


def test_run_folders_are_found_and_keep_what_they_hold(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "app", "name")
    run.write_config({"seed": 1})
    assert RunFolder.open(tmp_path / "app").path == run.path
    with pytest.raises(UserError, match=f"did you mean '{tmp_path}/app'"):
        RunFolder.open(tmp_path / "apq")
    run.merge_metrics({"metrics": {"a": 1}, "evaluations": [1], "own": "kept"})
    run.merge_metrics({"metrics": {"b": 2}, "evaluations": [2]})
    assert json.loads(run.metrics.read_text()) == {"metrics": {"a": 1, "b": 2}, "evaluations": [1, 2], "own": "kept"}
    run.write_config({"seed": 2})
    assert "seed: 1" in (run.path / "config.1.yaml").read_text()
    with run.lock(), pytest.raises(UserError, match="another process"), run.lock():
        pass


class Doubler(Pipeline):
    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        return nn.Linear(config["width"], 1)

    def __call__(self, inputs: Any) -> Any:
        return self.model(inputs)


def test_a_pipeline_comes_back_as_it_was(tmp_path: Path) -> None:
    pipe = Doubler(nn.Linear(3, 1), {"width": 3, "app": "test", "metrics": {"test/top1": 0.5}})
    pipe.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = Doubler.from_pretrained(tmp_path, device="cpu")  # a run folder: its model/ is found
    x = torch.randn(2, 3)
    assert torch.equal(pipe(x), again(x))
    assert not again.model.training
    assert again.config == pipe.config
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "test/top1 | 0.5" in card


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        Doubler.from_pretrained(tmp_path)
    pipe = Doubler(nn.Linear(3, 1), {"width": 3})
    pipe.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 4}')
    with pytest.raises(UserError, match="do not fit"):
        Doubler.from_pretrained(tmp_path)


def test_state_is_counted() -> None:
    from core.layers import TimeMix

    assert state_bytes(nn.Sequential(TimeMix(64, head_dim=16), nn.Linear(2, 2))) == 4 * 64 * 16


def test_metrics_have_a_column_per_split() -> None:
    table = metrics_table({"val/top1": 0.5, "test/top1": 0.25, "test/loss": 1.0})
    assert [column.header for column in table.columns] == ["metric", "val", "test"]
    assert table.row_count == 2
