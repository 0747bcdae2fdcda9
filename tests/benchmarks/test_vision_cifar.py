"""The CIFAR-10 comparison, in small: equal parameters, a fair clock, equal steps and equal time from one curve."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from timm.layers import use_fused_attn

from benchmarks import vision_cifar as benchmark
from benchmarks import vision_curve
from benchmarks.study import LINES
from benchmarks.vision_cifar import MODELS, OURS, RIVAL, SHAPES, TWIN, Key, model_words, verdict
from benchmarks.vision_curve import Curve, Watch, common_step, draw, progress_table, step_table, time_table
from benchmarks.vision_training import build, configuration, picture_facts


def curve(points: list[tuple[int, float, float]], **changed) -> Curve:
    step, spent, val = points[-1]
    given = {
        "dataset": "made up", "sizes": {"train": 54, "val": 6, "test": 12}, "val": val, "test": val - 0.01, "loss": 1.0,
        "steps": step, "seconds": spent + 5, "parameters": 1000, "spent": spent, "points": [list(p) for p in points],
    }  # fmt: skip
    return Curve(**{**given, **changed})


SLOW = curve([(2, 30.0, 0.2), (4, 60.0, 0.4)])
QUICK = curve([(2, 10.0, 0.1), (4, 20.0, 0.3), (6, 30.0, 0.5), (11, 60.0, 0.6)])


def command(pictures, folder, *more: str) -> list[str]:
    return ["--output", str(folder), "--root", str(pictures), "--width", "32", "--depth", "1", "--batch", "4", *more]


@pytest.mark.parametrize("device", SHAPES)
def test_all_have_equal_parameters(device):
    shape = [SHAPES[device][name] for name in ("width", "depth", "patch")]
    ours, *others = (benchmark.parameters(model_words(model, *shape)) for model in MODELS)
    assert ours < benchmark.BAR["parameters"]
    assert all(abs(other / ours - 1) < 5e-3 for other in others)


def test_contestants_are_what_their_names_say():
    models = {
        name: build(configuration([*benchmark.BASE, *model_words(name, 64, 3, 4)]), picture_facts()).model
        for name in MODELS
    }
    assert len(models[RIVAL].blocks) == len(models[OURS].blocks) == 3
    assert models[RIVAL].embed_dim == models[OURS].embed_dim == 64
    assert models[RIVAL].patch_embed.num_patches == models[OURS].pos_embed.shape[1] == 64
    assert use_fused_attn()
    assert models[RIVAL].blocks[0].attn.fused_attn
    assert models[RIVAL].blocks[0].attn.num_heads == 2
    assert [type(models[name].blocks[0].att).__name__ for name in (OURS, TWIN)] == ["TimeMix", "Attention"]


@pytest.mark.parametrize("model", MODELS)
def test_a_training_is_watched_by_its_averaged_weights(model, pictures, tmp_path):
    assert benchmark.main(command(pictures, tmp_path, "--models", model, "--steps", "5", "--every", "2")) == 0
    (row,) = (json.loads(line) for line in (tmp_path / LINES).read_text().splitlines())
    found = Curve(**row["outcome"])
    assert [point[0] for point in found.points] == [2, 4]
    assert found.steps == 5
    assert 0 < found.points[0][1] < found.points[1][1] == found.spent


def test_it_learns_and_judges_the_weights_that_it_tells_of(pictures):
    setting = ["--steps", "40", "--every", "40", "--lr", "4e-3", "--batch", "16", "--threads", "1"]
    options = benchmark.parser().parse_args([*command(pictures, "nowhere"), *setting])
    setting = benchmark._setting(benchmark.parser(), options)
    first, second = (benchmark._one(setting, Key(OURS, 0)) for _ in range(2))
    assert first.test == 1.0
    assert first.loss == second.loss
    assert first.val == first.points[-1][2]


def test_time_ends_a_training_with_a_last_look(pictures, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setitem(vision_curve.CLOCKS, "cpu", lambda: float(next(ticks)))
    options = benchmark.parser().parse_args([*command(pictures, "nowhere", "--cpu-minutes", "0.1", "--every", "4")])
    found = benchmark._one(benchmark._setting(benchmark.parser(), options), Key(OURS, 0))
    # The clock is looked at once a batch, and once more for each validation.
    assert [point[0] for point in found.points] == [4, 5]
    assert found.points[-1][1] >= 6 > found.points[0][1]


def test_the_clock_stands_while_others_are_judged(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setitem(vision_curve.CLOCKS, "wall", lambda: now.seconds)
    watch = Watch("wall", 20.0)
    trainer = SimpleNamespace(callback_metrics={"val/top1": torch.tensor(0.25)}, global_step=7, should_stop=False)
    moments = (
        (3, watch.on_train_start), (10, watch.on_validation_start), (1000, watch.on_validation_end),
        (9, lambda *_: watch.on_train_batch_end(trainer, None, None, None, 0)),
    )  # fmt: skip
    for later, hook in moments:
        now.seconds += later
        hook(trainer, None)
    assert watch.points == [[7, 10.0, 0.25]]
    assert watch.spent == 19
    assert not trainer.should_stop
    now.seconds += 1
    watch.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop


def test_equal_steps_are_compared_where_all_were_looked_at():
    curves = {OURS: [SLOW, curve([(2, 31.0, 0.3), (4, 62.0, 0.5)])], RIVAL: [QUICK]}
    assert common_step(curves) == 4
    table = step_table(curves, batch=8)
    assert "after 4, 32 pictures" in table.title
    assert [row[0] for row in table.rows] == [OURS, RIVAL]
    assert table.rows[0][1:] == (2, pytest.approx(45.0), pytest.approx(50**0.5), 61)
    assert table.rows[1][1:] == (1, pytest.approx(30.0), None, 20)
    assert common_step({OURS: [SLOW], RIVAL: [curve([(3, 1.0, 0.1)])]}) is None


def test_time_is_compared_on_the_lines_between_looks():
    table = progress_table({OURS: [SLOW], RIVAL: [QUICK]}, 60.0, "minutes", rows=4)
    assert table.columns == ["minutes", OURS, RIVAL]
    wanted = [("0.25", None, 20.0), ("0.5", 20.0, 50.0), ("0.75", 30.0, 55.0), ("1", 40.0, 60.0)]
    for row, (minutes, *values) in zip(table.rows, wanted, strict=True):
        assert row[0] == minutes
        assert list(row[1:]) == pytest.approx(values)
    (row,) = time_table({RIVAL: [QUICK]}, 8, "all").rows
    assert row[:6] == (RIVAL, 1000, 1, 11, 88, 60)
    assert row[6:] == (pytest.approx(60.0), None, pytest.approx(59.0), None)


def test_the_picture_is_the_same_for_the_same_curves(tmp_path):
    first, second = (draw({OURS: [SLOW], RIVAL: [QUICK]}, tmp_path / f"{i}.svg", "minutes") for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    assert RIVAL in first.read_text().replace("<!-- ", "").replace(" -->", "")


@pytest.mark.parametrize(
    ("changed", "passed"),
    [({}, True), ({"test": 0.9499}, False), ({"parameters": 10_000_001}, False), ({"seconds": 600.5}, False)],
)
def test_the_bar(changed, passed):
    good = {"test": 0.95, "parameters": 10_000_000, "seconds": 600.0}
    found, sentence = verdict({OURS: [curve([(1, 1.0, 0.9)], **{**good, **changed})], RIVAL: [SLOW]})
    assert found == passed
    assert sentence.startswith("passed" if passed else "missed")
    assert verdict({RIVAL: [QUICK]})[0] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_bar_is_not_tested_without_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--output", str(tmp_path), "--device", "cuda"])
    assert stop.value.code == 2
    assert "no GPU here" in capsys.readouterr().err


def test_a_rerun_does_what_is_missing_and_writes(pictures, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(benchmark, "_one", lambda setting, key: trained.append(key) or {OURS: SLOW}.get(key[0], QUICK))
    monkeypatch.setattr("benchmarks.report.DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    arguments = command(pictures, tmp_path, "--minutes", "1")
    assert benchmark.main([*arguments, "--models", RIVAL]) == 0
    assert trained == [Key(RIVAL, 0)]
    assert benchmark.main([*arguments, "--write"]) == 0
    assert trained == [Key(RIVAL, 0), Key(OURS, 0), Key(TWIN, 0)]
    (written,) = (tmp_path / "docs").glob("vision-cifar-*.json")
    tables = json.loads(written.read_text())["tables"]
    assert [table["title"].split(":")[0] for table in tables] == [
        "Equal time", "Equal steps", "Accuracy on validation pictures by time, %",
    ]  # fmt: skip
    assert f"]({written.stem}.svg)" in written.with_suffix(".md").read_text()
    assert written.with_suffix(".svg").is_file()
    assert "One seed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main([*arguments, "--lr", "1"])
    assert "holds trainings with lr=0.002, now it is 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--width", "33"], "--width must be a multiple of 32, got 33"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--set", "model.depht=2"], "depth"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--output", str(tmp_path), "--root", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
