"""The scan study, in small: equal parameters, going on where it was left, and tables from finished lines alone."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import vision_scan as benchmark
from benchmarks.study import LINES, run
from benchmarks.vision_scan import Key, Setting, Trainings
from benchmarks.vision_training import Outcome, build, configuration, picture_facts, train
from core.errors import UserError

SETTING = Setting(2, 4, 1e-3, "pictures", ())


def outcome(val: float, test: float = 0.5) -> Outcome:
    return Outcome("made up", {"train": 54, "val": 6, "test": 12}, val, test, 1.0, 2, 3.0, 1000)


def command(pictures: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--output", str(folder), "--root", str(pictures), "--steps", "2", "--batch", "4", "--seeds", "1",
        "--set", "model.depth=2", "--scans", "forward,split2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("scan", benchmark.STUDIED)
def test_parameters_are_equal_with_and_without_shift(scan):
    counts = []
    for shift in benchmark.SHIFTS:
        model = build(configuration(SETTING.words(Key(scan, shift, 0))), picture_facts()).model
        counts.append(sum(p.numel() for p in model.parameters()))
    assert abs(counts[1] / counts[0] - 1) < 2e-3
    assert counts[0] == 270858


def test_what_is_asked_for_is_built():
    for scan in benchmark.STUDIED:
        model = build(configuration(SETTING.words(Key(scan, "none", 0))), picture_facts()).model
        mixer = model.backbone.blocks[1].att
        wanted = {"alternate": ("backward",), "forward": ("forward",)}
        four = ("forward", "backward", "down", "up")
        orders = wanted.get(scan, four if scan.endswith("4") else four[:2])
        assert (mixer.scan.orders, mixer.scan.split) == (orders, scan.startswith("split"))


def test_a_training_learns_and_repeats_itself(pictures):
    setting = Setting(30, 16, 4e-3, str(pictures), ("model.depth=2",))
    config = configuration(setting.words(Key("split2", "quad", 0)))
    first, second = train(config), train(config)
    assert first.test == 1.0
    assert first.loss == second.loss
    assert (first.steps, first.dataset, first.sizes) == (30, "CIFAR-10 (JPEG)", {"train": 54, "val": 6, "test": 12})


def test_a_loss_that_is_not_finite_is_no_result(pictures):
    setting = Setting(3, 16, 1e30, str(pictures), ("model.depth=2", "optim.warmup=0"))
    with pytest.raises(FloatingPointError, match="a lower optim.lr may help"):
        train(configuration(setting.words(Key("forward", "none", 0))))


def test_a_rerun_does_what_is_missing(pictures, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(benchmark, "_one", lambda setting, key: trained.append(key) or outcome(0.25))
    assert benchmark.main(command(pictures, tmp_path, "--shifts", "quad")) == 0
    assert trained == [Key("forward", "quad", 0), Key("split2", "quad", 0)]
    trained.clear()
    assert benchmark.main(command(pictures, tmp_path)) == 0
    assert trained == [Key("forward", "none", 0), Key("split2", "none", 0)]
    trained.clear()
    assert benchmark.main(command(pictures, tmp_path)) == 0
    assert not trained
    assert "Unfinished" not in capsys.readouterr().out


def test_a_failed_training_is_told_and_the_rest_goes_on(pictures, tmp_path, monkeypatch, capsys):
    def one(setting: Setting, key: Key) -> Outcome:
        if key.shift == "quad" and key.scan == "forward":
            raise FloatingPointError("the loss is nan")
        return outcome(0.25)

    monkeypatch.setattr(benchmark, "_one", one)
    assert benchmark.main(command(pictures, tmp_path)) == 1
    said = capsys.readouterr()
    assert "forward, quad shift, seed 0: the loss is nan" in said.err
    assert "1 of 4 trainings are missing" in said.out
    assert len((tmp_path / LINES).read_text().splitlines()) == 3


def test_two_jobs_in_processes(pictures, tmp_path):
    setting = Setting(2, 4, 1e-3, str(pictures), ("model.depth=2",))
    keys = [Key(scan, "quad", 0) for scan in ("forward", "split2")]
    lines = Trainings(tmp_path, setting, Key, Outcome)
    assert run(keys, lines, 2, benchmark._one) == []
    assert Trainings(tmp_path, setting, Key, Outcome).outcomes == lines.outcomes
    assert set(lines.outcomes) == set(keys)


def test_lines_of_another_setting_are_refused(tmp_path):
    Trainings(tmp_path, SETTING, Key, Outcome).add(Key("forward", "quad", 0), outcome(0.5))
    with pytest.raises(UserError, match="holds trainings with steps=2, now it is 3"):
        Trainings(tmp_path, SETTING._replace(steps=3), Key, Outcome)
    assert Trainings(
        tmp_path, SETTING._replace(root="elsewhere"), Key, Outcome
    ).outcomes  # the same pictures in another place


def test_a_broken_line_is_told(tmp_path):
    (tmp_path / LINES).write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="Line 1 of .* is no finished training"):
        Trainings(tmp_path, SETTING, Key, Outcome)


def test_the_table_is_the_mean_over_seeds_best_first(tmp_path, capsys, monkeypatch):
    values = {"forward": [0.40, 0.44, 0.42], "split2": [0.50, 0.53, 0.47]}
    lines = Trainings(tmp_path, SETTING, Key, Outcome)
    for scan, found in values.items():
        for seed, val in enumerate(found):
            lines.add(Key(scan, "quad", seed), outcome(val, val + 0.01))
    monkeypatch.setattr("benchmarks.report.DOCS", tmp_path / "docs")
    arguments = ["--output", str(tmp_path), "--no-train", "--steps", "2", "--batch", "4", "--lr", "1e-3", "--write"]
    assert benchmark.main([*arguments, "--scans", "forward,split2", "--shifts", "quad"]) == 0
    (path,) = (tmp_path / "docs").glob("vision-scan-*.json")
    rows = json.loads(path.read_text())["tables"][0]["rows"]
    assert [row["scan"] for row in rows] == ["split2", "forward"]
    for row in rows:
        wanted = [100 * x for x in values[row["scan"]]]
        assert row["val top-1, %"] == pytest.approx(statistics.fmean(wanted))
        assert row["± val"] == pytest.approx(statistics.stdev(wanted))
        assert row["test top-1, %"] == pytest.approx(statistics.fmean(wanted) + 1)
    pooled = (sum(statistics.variance([100 * x for x in v]) for v in values.values()) / 2) ** 0.5
    assert f"scatters by {pooled:.2f} points" in capsys.readouterr().out


def test_step_times_are_of_each_pair():
    times = benchmark.step_times([("forward", "quad"), ("cross4", "quad")], SETTING._replace(batch=8), turns=3)
    assert 0 < times["forward", "quad"] < times["cross4", "quad"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scans", "spiral"], "'spiral': give some of forward"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--set", "model.depht=2"], "depth"),
        (["--root", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--output", str(tmp_path), "--root", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_nothing_is_downloaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GREYLAG_SHARED", raising=False)
    with pytest.raises(SystemExit):
        benchmark.main(["--output", str(tmp_path)])
    assert "give its folder with --root" in capsys.readouterr().err
