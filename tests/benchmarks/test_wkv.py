"""The operator's benchmark, in small: it runs, it measures what it says, and it lets no wrong answer win."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import wkv as benchmark
from benchmarks.report import WRONG

TINY = ["--shapes", "1x32x2x8x8", "--no-short", "--turns", "1"]
LOOPS = ["--peers", "loop,loop-unbind"]


def test_it_prints_a_table_and_writes_on_request(capsys, tmp_path):
    assert benchmark.main([*TINY, *LOOPS, "--backend", "chunked,reference", "--output", str(tmp_path / "w")]) == 0
    text = capsys.readouterr().out
    assert "B=1 T=32 H=2 K=8 V=8" in text
    rows = json.loads((tmp_path / "w.json").read_text())["tables"][0]["rows"]
    assert [row["contestant"] for row in rows] == ["loop", "loop-unbind", "greylag chunked", "greylag reference"]
    for row in rows:
        assert row["forward"]["median_s"] > 0
        assert row["forward+backward"]["median_s"] > 0
        assert row["error y"] < 1e-6
    assert rows[0]["x loop"] == 1
    assert (tmp_path / "w.md").exists()


@pytest.mark.parametrize("reason", [None, "no compiler"])
def test_the_cpu_kernel_is_measured_where_it_runs(monkeypatch, capsys, reason):
    there = {**benchmark.available_backends(), "native": reason}
    monkeypatch.setattr(benchmark, "available_backends", lambda: there)
    assert benchmark.main([*TINY, *LOOPS]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| greylag")]
    assert set(rows) == {"greylag chunked"} | ({"greylag native"} if reason is None else set())


def test_it_writes_nothing_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.report.DOCS", tmp_path)
    assert benchmark.main([*TINY, *LOOPS]) == 0
    assert not list(tmp_path.iterdir())
    assert benchmark.main([*TINY, *LOOPS, "--write"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}


def test_flas_plain_torch_forms_agree():
    pytest.importorskip("fla", reason="flash-linear-attention is not installed")
    runs = benchmark.contestants(["fla-recurrence", "fla-chunks"], [])
    problem = benchmark.Problem.make(benchmark.Shape(2, 32, 2, 8, 12), torch.float32, "cpu")
    truth = problem.truth()
    for name, run in runs.items():
        assert max(benchmark.errors(problem, truth, run)) < 2e-6, name


@pytest.mark.parametrize("fault", ["y", "final", "gradient", "nan"])
def test_a_wrong_contestant_gets_no_speed(monkeypatch, capsys, fault):
    def wrong(*inputs):
        y, final = benchmark.loop(*inputs)
        if fault == "y":
            y = y * 1.001
        elif fault == "final":
            final = final * 1.001
        elif fault == "gradient":
            y = y + 1e-3 * (y - y.detach())  # the same value, another gradient
        else:
            y = y + torch.nan
        return y, final

    monkeypatch.setitem(benchmark.PEERS, "loop-unbind", lambda: wrong)
    assert benchmark.main([*TINY, *LOOPS]) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| loop-unbind"))
    assert row.count(WRONG) == 2
    assert " ms" not in row
    assert "µs" not in row


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "chunkd"], r"unknown backend 'chunkd': choose among reference, chunked"),
        (["--peers", "flash"], r"unknown peer 'flash': choose among loop"),
        (["--shapes", "1x2x3"], r"'1x2x3' is no shape: write BxTxHxKxV"),
        (["--shapes", "1x2x3x4x0"], r"must be at least 1"),
        (["--turns", "0"], r"--turns must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_answered_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as caught:
        benchmark.main([*LOOPS, *arguments])
    assert caught.value.code == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_an_unavailable_backend_says_why(capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: every backend may run")
    with pytest.raises(SystemExit):
        benchmark.main([*LOOPS, "--backend", "fla"])
    assert "the backend 'fla' cannot run here: " in capsys.readouterr().err
