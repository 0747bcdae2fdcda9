"""The cost of forecasting, in small: who is wrong gets no speed, ratios and bars say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import forecast_cost as benchmark
from benchmarks import forecast_following as contestants
from benchmarks.forecast_following import OURS, PEER, TWIN, Size
from benchmarks.report import WRONG, Timing

TINY = Size(32, 2)
SMALL = [
    "--contexts", "32,64", "--streams", "1,2", "--batches", "1,2", "--horizons", "8", "--context", "64", "--dim", "32",
    "--layers", "2", "--turns", "1", "--long-turns", "1", "--no-memory",
]  # fmt: skip


def table(content, start):
    return next(t["rows"] for t in content["tables"] if t["title"].startswith(start))


def test_every_question_is_answered(tmp_path):
    assert benchmark.main([*SMALL, "--no-peer", "--output", str(tmp_path / "cost")]) == 0
    content = json.loads((tmp_path / "cost.json").read_text())
    for start, count in (("1 stream:", 4), ("2 streams:", 4), ("Reading", 4), ("Throughput", 4 + 0)):
        assert len(table(content, start)) == count
    rows = {(row["history"], row["model"]): row for row in table(content, "2 streams:")}
    ours, twin = rows["64", OURS], rows["64", TWIN]
    for heading in benchmark.HEADINGS.values():
        assert ours[heading]["median_s"] > 0
        assert twin[heading]["median_s"] > 0
    assert ours["state of a stream, KiB"] == rows["32", OURS]["state of a stream, KiB"]
    assert twin["state of a stream, KiB"] > rows["32", TWIN]["state of a stream, KiB"]
    for row in table(content, "Throughput"):
        assert row["series/s"] == pytest.approx(row["batch"] / row["time of a batch"]["median_s"])
    assert any("No PatchTST: left out by --no-peer." in note for note in content["notes"])


def test_patchtst_reads_everything():
    pytest.importorskip("neuralforecast", reason="the peer comes with pip install 'greylag[bench]'")
    model = contestants.peer(64, 8)
    with torch.inference_mode():
        assert contestants.cold_peer(model, contestants.series(3, 64)).shape == (3, 8, 1)


def test_a_missing_peer_is_a_note(monkeypatch, capsys):
    monkeypatch.setattr(contestants, "versions", lambda name: {name: "not installed"})
    assert benchmark.main(SMALL) == 0
    out = capsys.readouterr().out
    assert PEER not in out
    assert "No PatchTST: neuralforecast is not installed: pip install 'greylag[bench]'." in out


def test_the_twin_is_a_twin():
    ours, twin = (contestants.build(name, Size(128, 4)) for name in (OURS, TWIN))
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, twin)]
    assert 1e6 < counts[0] < 4e6
    assert abs(counts[1] / counts[0] - 1) < 5e-3


@pytest.mark.parametrize("name", [OURS, TWIN])
def test_no_weight_is_silent_and_streams_are_right(name):
    model = contestants.build(name, TINY)
    assert all(p.any() for p in model.parameters() if p.ndim == 2)
    with torch.inference_mode():
        assert contestants.error(model, contestants.series(1, 1600)) < benchmark.BOUND


@torch.inference_mode()
def test_the_guard_sees_the_beginning_of_the_history():
    """What was read first reaches the forecast: forgetting it is far outside the bound."""
    model, given = contestants.build(OURS, TINY), contestants.series(1, 256)
    whole = contestants.cold(model, given, 8)
    late = contestants.cold(model, given.seen_as(torch.arange(256)[None] >= 16), 8)
    assert (whole - late).abs().max() > 100 * benchmark.BOUND * whole.std()


@pytest.mark.parametrize("fault", [1e-3, float("nan")])
def test_a_wrong_stream_gets_no_speed(monkeypatch, capsys, fault):
    right = contestants.build

    def build(name, size):
        model = right(name, size)
        if name == OURS:
            update = model.update

            def off(stream, *given):
                after = update(stream, *given)
                return after._replace(hidden=after.hidden * (1 + fault))

            model.update = off
        return model

    monkeypatch.setattr(contestants, "build", build)
    assert benchmark.main([*SMALL, "--no-peer"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if OURS in line and line.startswith("|")]
    assert lines
    assert all(WRONG in line for line in lines)


def test_bars():
    def timings(ours, twin):
        return {(name, n): Timing((t,)) for name, by in ((OURS, ours), (TWIN, twin)) for n, t in by.items()}

    flat = timings({1024: 1.0, 16384: 1.1, 65536: 1.19}, {1024: 5.0, 16384: 12.0, 65536: 60.0})
    steep = timings({1024: 1.0, 16384: 1.5, 65536: 2.0}, {1024: 5.0, 16384: 12.0, 65536: 60.0})
    options = benchmark.parser().parse_args([])
    by_op, rates = {"patch": flat, "step": steep, "forecast": flat}, {"256/32": 199.0, "1/32": 5.0}
    rows = benchmark.bars({1: by_op}, {(TWIN, 16384): Timing((24.2,))}, rates, options)
    assert [(row[2], row[3]) for row in rows.rows] == [
        (1.19, "yes"), (pytest.approx(12 / 1.1), "yes"), (2.0, "no"), (8.0, "no"), (1.19, "yes"),
        (pytest.approx(11), "yes"), (199.0, "no"),
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts the peak as Linux does")
def test_memory_comes_from_a_process_of_its_own():
    """Each history is measured as if it came first: the last is no larger than when it follows a long one."""
    short, long, again = contestants.peaks(TWIN, [1024, 65536, 1024], TINY)
    assert short < long / 2
    assert abs(again - short) < 2**20


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--contexts", "100"], "a history must be a multiple of 16 steps"),
        (["--contexts", "many"], "give positive numbers"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
        (["--dim", "48"], "--dim must be a multiple of 32"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
