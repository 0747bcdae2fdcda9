"""The benchmark of bi_wkv, in small: it runs, it writes, and a wrong contestant gets no speed."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bi_wkv as benchmark
from benchmarks.report import WRONG

TINY = ["--shapes", "2x9", "--turns", "1"]


def test_it_prints_and_writes(capsys, tmp_path):
    threads = torch.get_num_threads()
    assert benchmark.main([*TINY, "--output", str(tmp_path / "b")]) == 0
    assert torch.get_num_threads() == threads == 1
    assert "B=2 T=9" in capsys.readouterr().out
    speed, accuracy = json.loads((tmp_path / "b.json").read_text())["tables"]
    assert [row["contestant"] for row in speed["rows"]] == ["running sums", "loop", "matrix", "SDPA"]
    for row in speed["rows"][:3]:
        assert max(row["error y"], row["error gradients"]) < 1e-5
        assert row["forward"]["median_s"] > 0
    assert all(row["running sums"] < 1e-5 for row in accuracy["rows"])


@pytest.mark.parametrize("fault", ["y", "gradient"])
def test_a_wrong_contestant_gets_no_speed(monkeypatch, fault):
    def wrong(*inputs):
        y = benchmark.bi_wkv(*inputs)
        return y * 1.001 if fault == "y" else y + 1e-3 * (y - y.detach())

    monkeypatch.setitem(benchmark.RUNS, "matrix", wrong)
    rows = {row[0]: row for row in benchmark.speed((1, 9), 1).rows}
    assert rows["matrix"][3:] == (WRONG, WRONG)
    assert rows["loop"][3] != WRONG
