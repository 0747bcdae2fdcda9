"""The GPU benchmark as far as a CPU goes: its arguments, its sums, its guard and its tables, with stand-ins timed."""

from __future__ import annotations

import re
import time

import pytest
import torch

from benchmarks import gpu_wkv as benchmark
from benchmarks.report import WRONG, Timing
from benchmarks.wkv import Shape
from core.wkv import wkv7

SHAPE = Shape(2, 6, 2, 8, 12)


def wall(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def chunked(*inputs):
    return wkv7(*inputs, return_state=False, backend="chunked")[0]


def either(both_ways):
    return benchmark.two_calls(chunked) if both_ways else chunked


@pytest.fixture
def options(monkeypatch):
    """Two right contestants, one of them under fla's name, and attention."""
    contestants = {"greylag triton": either, "fla chunk_rwkv7": either, "SDPA": benchmark.by_attention}
    monkeypatch.setattr(benchmark, "CONTESTANTS", contestants)
    arguments = ["--dtype", "float32", "--turns", "2", "--shapes", "2x6x2x8x8", "--no-long"]
    options = benchmark.parser().parse_args(arguments, benchmark.Options())
    options.device, options.contestants = "cpu", list(contestants)
    return options


def test_a_report(options):
    report = benchmark.report_of(options, "the command", wall, 1e9)
    assert [table.title for table in report.tables] == [
        "B=2 T=6 H=2 K=8 V=8, one direction",
        "B=2 T=6 H=2 K=8 V=8, both directions",
    ]
    for table in report.tables:
        rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
        assert rows["fla chunk_rwkv7"]["x fla"] == 1
        for name in ("greylag triton", "fla chunk_rwkv7"):
            assert max(rows[name]["error y"], rows[name]["error gradients"]) < 1e-5
            assert len(rows[name]["forward"].turns) == 2
            assert re.fullmatch(r"\d+%", rows[name]["of the bound "])
        assert rows["SDPA"]["error y"] is None
        assert isinstance(rows["SDPA"]["forward+backward"], Timing)
    assert "1 GB/s" in report.markdown()


@pytest.mark.parametrize("fault", ["y", "gradient", "nan", "one way"])
def test_a_wrong_contestant_gets_no_speed(options, monkeypatch, fault):
    def wrong(both_ways):
        def run(*inputs):
            y = either(both_ways and fault != "one way")(*inputs)
            if fault == "gradient":
                return y + 1e-3 * (y - y.detach())  # the same value, another gradient
            return y * {"y": 1.001, "nan": torch.nan, "one way": 1.0}[fault]

        return run

    monkeypatch.setitem(benchmark.CONTESTANTS, "greylag triton", wrong)
    *_, table = benchmark.report_of(options, "the command", wall, 1e9).tables
    row, other, _ = table.rows
    assert row.count(WRONG) == 2
    assert not any(isinstance(x, Timing) for x in row)
    assert WRONG not in other


def test_who_runs_out_of_memory_is_named(options, monkeypatch):
    def greedy(both_ways):
        def run(*inputs):
            raise torch.OutOfMemoryError("no more")

        return run

    monkeypatch.setitem(benchmark.CONTESTANTS, "greylag triton", greedy)
    table, *_ = benchmark.report_of(options, "the command", wall, 1e9).tables
    assert table.rows[0].count(benchmark.NO_MEMORY) == 4
    assert WRONG not in table.rows[0]


def test_long_truths_agree_with_the_recurrence(monkeypatch):
    inputs = benchmark.Inputs.make(SHAPE, torch.float32, "cpu", 0)
    short = benchmark.truth(inputs, both_ways=True)
    monkeypatch.setattr(benchmark, "STEP_BY_STEP", 5)
    for x, y in zip(short, benchmark.truth(inputs, both_ways=True), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_inputs_are_new_every_turn():
    seen = []
    runs = {"first": lambda *x: seen.append(x[0]) or x[0], "second": lambda *x: seen.append(x[0]) or x[0]}
    made = benchmark.in_turns(
        runs, "forward", lambda seed: benchmark.Inputs.make(SHAPE, torch.float32, "cpu", seed), 3, wall
    )
    assert {name: len(timing.turns) for name, timing in made.items()} == {"first": 3, "second": 3}
    assert len(seen) == 10  # two turns to warm up
    assert all(torch.equal(x, y) for x, y in zip(seen[::2], seen[1::2], strict=True))
    assert len({float(x.sum()) for x in seen}) == 5


def test_the_bytes_that_must_move():
    """Counted by hand: B T H = 24 times 4 x 8 keys, 12 values (2 bytes), 8 log_w (4 bytes), and y, dy of 12."""
    inputs = 4 * 8 * 2 + 8 * 4 + 12 * 2
    assert benchmark.least_bytes(SHAPE, torch.bfloat16, backward=False) == 24 * (inputs + 24)
    assert benchmark.least_bytes(SHAPE, torch.bfloat16, backward=True) == 24 * (3 * inputs + 48)


def test_bandwidth_counts_reads_and_writes():
    assert benchmark.bandwidth(lambda call: (call(), 0.5)[1], "cpu", size=1000) == 4000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--contestants", "flash"], r"unknown contestant 'flash': choose among greylag triton"),
        (["--shapes", "1x2x3"], r"'1x2x3' is no shape: write BxTxHxKxV"),
        (["--turns", "0"], r"--turns must be at least 1, got 0"),
        pytest.param(
            [], "needs a CUDA or ROCm GPU, and torch sees none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(arguments)
    assert caught.value.code == 2
    assert re.search(sentence, capsys.readouterr().err)
