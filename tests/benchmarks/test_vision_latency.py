"""The latency benchmark for images, in small: it measures who is right, and memory as it was used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import use_fused_attn

from benchmarks import memory
from benchmarks import vision_latency as benchmark
from benchmarks.report import WRONG
from benchmarks.vision_latency import CONTESTANTS, OURS, RIVAL

SMALL = ["--sizes", "64", "--turns", "1", "--device", "cpu"]
TWO_WAYS = "VRWKV-7 tiny, two directions"
F32 = torch.float32


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (architecture, options) in CONTESTANTS.items():
        monkeypatch.setitem(CONTESTANTS, name, (architecture, {**options, "depth": 2}))


@pytest.fixture
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "peak", lambda *given: 3 * 2**20)


def test_all_are_right_and_compared_with_the_vit(tmp_path, no_peak):
    assert benchmark.main([*SMALL, "--sizes", "64,96", "--output", str(tmp_path / "l")]) == 0
    content = json.loads((tmp_path / "l.json").read_text())
    assert [table["title"] for table in content["tables"]] == ["64 x 64 pixels, 16 tokens", "96 x 96 pixels, 36 tokens"]
    for table in content["tables"]:
        rows = {row["model"]: row for row in table["rows"]}
        assert list(rows) == list(CONTESTANTS)
        vit = rows[RIVAL]["latency"]["median_s"]
        for name, row in rows.items():
            assert row["times the ViT's speed"] == pytest.approx(vit / row["latency"]["median_s"])
            assert row["peak memory, MiB"] == 3
            assert (row["error"] is not None) == name.startswith("VRWKV-7")
    assert "16 tokens" in (tmp_path / "l.md").read_text()


def test_contestants_are_what_their_names_say():
    models = {name: benchmark.build(name, 64, "cpu", F32) for name in CONTESTANTS}
    scans = {name: model.backbone.blocks[1].att for name, model in models.items() if name.startswith("VRWKV-7")}
    assert [att.scan.orders for att in scans.values()] == [("backward",), ("forward", "backward")]
    assert use_fused_attn()
    assert models[RIVAL].blocks[0].attn.fused_attn
    assert models[RIVAL].embed_dim == models[TWO_WAYS].embed_dim == 192
    ours, twin = (sum(p.numel() for p in models[name].parameters()) for name in (TWO_WAYS, "attention twin, SDPA"))
    assert abs(twin / ours - 1) < 5e-3


def test_no_weight_is_silent():
    """Output projections start at zero; a mixer behind them could compute anything."""
    model = benchmark.build(TWO_WAYS, 64, "cpu", F32)
    assert all(p.any() for p in model.parameters() if p.ndim == 2)


@pytest.mark.parametrize("fault", [2e-3, float("nan")])
def test_wrong_logits_get_no_speed(monkeypatch, capsys, no_peak, fault):
    """One mixer's output is off by a little, in the measured run and not in the one that it is held to."""
    right, calls = benchmark.build, []

    def build(name, *given, **changed):
        model = right(name, *given, **changed)
        if name == TWO_WAYS:
            att = model.backbone.blocks[0].att
            forward = att.forward

            def off(*inputs, **options):
                calls.append(1)
                y, *rest = forward(*inputs, **options)
                return (y * (1 + fault) if len(calls) == 1 else y, *rest)

            att.forward = off
        return model

    monkeypatch.setattr(benchmark, "build", build)
    assert benchmark.main(SMALL) == 1
    (row,) = [line for line in capsys.readouterr().out.split("# VRWKV")[1].splitlines() if WRONG in line]
    assert TWO_WAYS in row


def test_another_scan_is_far_outside_the_bound():
    """The guard has teeth: the same weights walked the other way give other logits."""
    x = benchmark.picture(64, "cpu", F32)
    logits = [benchmark.build(TWO_WAYS, 64, "cpu", F32, scan=scan)(x) for scan in ("bidirectional", "forward")]
    off = (logits[0] - logits[1]).abs().max() / logits[1].std()
    assert off > 100 * benchmark.BOUNDS[F32]


def test_a_vit_that_is_not_finite_gets_no_speed(monkeypatch, capsys, no_peak):
    right = benchmark.build

    def build(name, *given, **changed):
        model = right(name, *given, **changed)
        if name == RIVAL:
            torch.nn.init.constant_(model.head.bias, torch.inf)
        return model

    monkeypatch.setattr(benchmark, "build", build)
    assert benchmark.main([*SMALL, "--models", RIVAL, TWO_WAYS]) == 1
    assert WRONG in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts the peak as Linux does")
def test_peak_is_that_of_the_forward_pass(repository):
    """A fresh process that once held more, and then needs 64 MiB for a moment."""
    program = """
import torch
from benchmarks import memory
from benchmarks import vision_latency as benchmark
torch.zeros(100 * 2**18)  # 100 MiB, gone again
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.ones(int(x.shape[-1] == 32) * 64 * 2**18 + 1).sum()
benchmark.build = lambda name, size, *rest: Model()
benchmark.picture = lambda size, *rest: torch.zeros(1, 3, 32 if size == 128 else 8, 32 if size == 128 else 8)
print(benchmark._own_peak("any", 128, torch.float32))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert 63 < int(done.stdout) / 2**20 < 72


def test_peak_comes_from_a_child(monkeypatch):
    assert 1 < benchmark.peak(TWO_WAYS, 224, "cpu", F32, torch.nn.Identity()) / 2**20 < 500


def test_memory_elsewhere_than_on_linux(monkeypatch):
    def missing(self: Path, *given, **options):
        raise FileNotFoundError

    here = memory.resident("VmHWM")
    monkeypatch.setattr(Path, "read_text", missing)
    assert memory.resident("VmHWM") >= 0.9 * here


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "100"], "give multiples of 16"),
        (["--sizes", "small"], "give multiples of 16"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_names_in_timm():
    assert {architecture for architecture, _ in CONTESTANTS.values()} == {OURS, "vit_tiny_patch16_224"}
