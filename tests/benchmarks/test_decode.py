"""The decoding benchmark, in small: it measures who is right, and nobody else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import decode as benchmark
from benchmarks.report import WRONG
from core.checkpoint import load_blinkdl

TINY = ["--layers", "2", "--dim", "64", "--vocabulary", "100", "--prompt", "24", "--turns", "1"]
PEER = importlib.util.find_spec("rwkv") is not None


def rows(path: Path) -> list[dict[str, dict]]:
    tables = json.loads(path.read_text())["tables"]
    return [{row["contestant"]: row for row in table["rows"]} for table in tables]


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = benchmark.side_by_side
    monkeypatch.setattr(benchmark, "side_by_side", lambda calls, turns, least: measure(calls, turns, 0.01))


# In a process of its own: the package changes settings of torch.
@pytest.mark.skipif(not PEER, reason="the rwkv package is not installed")
def test_both_are_right_and_measured(repository, tmp_path):
    command = [sys.executable, "-m", "benchmarks.decode", *TINY, "--output", str(tmp_path / "d")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "One token: 2 x 64, vocabulary 100" in done.stdout
    token, prompt = rows(tmp_path / "d.json")
    assert list(token) == ["bound: torch.mv", "greylag", "rwkv package"]
    assert list(prompt) == ["bound: matrix products", "greylag", "rwkv package"]
    for table, tokens in ((token, 1), (prompt, 24)):
        for name, row in table.items():
            assert row["time"]["median_s"] > 0
            assert row["tokens/s"] == pytest.approx(tokens / row["time"]["median_s"])
            assert name.startswith("bound") or 0 < row["error"] < 2e-5
        assert table["rwkv package"]["x rwkv package"] == 1


@pytest.mark.parametrize("fault", ["greylag_token", "greylag_prompt", "nan"])
def test_wrong_logits_get_no_speed(monkeypatch, capsys, fault):
    name = "greylag_token" if fault == "nan" else fault
    right, calls = getattr(benchmark, name), []

    def wrong(lm, tokens):
        logits, call = right(lm, tokens)
        calls.append(1)
        off = torch.nan if fault == "nan" else 3e-4 * logits.std()
        return (logits + off if len(calls) == 2 else logits), call  # the first call makes the reference

    monkeypatch.setattr(benchmark, name, wrong)
    assert benchmark.main([*TINY, "--no-peer"]) == 1
    assert capsys.readouterr().out.count(WRONG) == 1


def test_the_checkpoint_is_hard(tmp_path):
    path = tmp_path / "m.pth"
    benchmark.make_checkpoint(path, 100, 64, 2)
    lm = load_blinkdl(path)
    with torch.no_grad():
        logits, _ = lm(torch.randint(100, (1, 50)))
    assert 0.5 < logits.std() < 2
    assert all(p.std() > 0 for p in lm.parameters())


def test_the_bound_touches_every_matrix_once(tmp_path):
    benchmark.make_checkpoint(tmp_path / "m.pth", 100, 64, 2)
    lm = load_blinkdl(tmp_path / "m.pth")
    found = sum(m.numel() for m in benchmark.matrices(lm))
    small = {"emb.weight", "ln", "x_", "w0", "a0", "v0", "k_k", "k_a", "r_k"}
    rest = [n for n, _ in lm.named_parameters() if any(part in n for part in small)]
    assert found == sum(p.numel() for n, p in lm.named_parameters() if n not in rest)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dim", "100"], "--dim must be a multiple of 64"),
        (["--prompt", "1"], "--prompt must be at least 2, got 1"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_peer_is_told(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "versions", lambda *names: dict.fromkeys(names, "not installed"))
    with pytest.raises(SystemExit):
        benchmark.main(TINY)
    assert "pass --no-peer" in capsys.readouterr().err
