"""The benchmark frame: fair turns, plain reports, no speed for a wrong answer."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import Machine, Report, Table, Timing, seconds, side_by_side, versions


def test_contestants_take_turns():
    seen = []
    timings = side_by_side({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, turns=3, least=0.0)
    assert seen == ["a", "b"] * 4  # one unmeasured call of each first
    assert [len(t.turns) for t in timings.values()] == [3, 3]


def test_a_quick_call_is_repeated_within_its_turn_and_averaged():
    calls = []
    timing = side_by_side({"a": lambda: calls.append(0)}, turns=1, least=0.02)["a"]
    assert len(calls) > 10
    assert timing.median < 0.01


def test_turns_must_be_positive():
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        side_by_side({}, turns=0)


def test_a_timing_is_a_median_with_its_spread():
    timing = Timing((0.5, 0.1, 0.2))
    assert (timing.median, timing.low, timing.high) == (0.2, 0.1, 0.5)
    assert str(timing) == "200 ms (100 ms to 500 ms)"
    assert [seconds(x) for x in (12.34, 0.0321, 4.5e-6)] == ["12.3 s", "32.1 ms", "4.50 µs"]


def test_this_machine_has_a_name_that_a_file_may_bear():
    here = Machine.here()
    assert here.cores >= 1
    assert here.threads >= 1
    assert here.slug
    assert here.slug == here.slug.lower().replace(" ", "-").strip("-")
    xeon = Machine("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", 2, 2, 8.0, "Linux", None)
    assert xeon.slug == "intel-xeon-e5-2690-v4-2-cores"
    assert Machine("x", 2, 2, 8.0, "Linux", "NVIDIA H200").slug == "nvidia-h200"


def test_versions_name_what_is_missing():
    found = versions("torch", "no-such-distribution")
    assert found["torch"][0].isdigit()
    assert found["no-such-distribution"] == "not installed"


def test_a_report_is_written_as_json_and_as_the_same_table(tmp_path):
    table = Table("speed", ["who", "time", "error"])
    table.add("goose", Timing((0.001, 0.003, 0.002)), 1.25e-7)
    table.add("du|ck", None, 12.3456)
    report = Report("Flight", "python -m fly", {"turns": 3}, {"torch": "2"}, [table], ["calm day"])
    as_json, as_text = report.write(tmp_path / "new" / "flight")
    text = as_text.read_text(encoding="utf-8")
    assert "| goose | 2.00 ms (1.00 ms to 3.00 ms) | 1.2e-07 |" in text
    assert "| du\\|ck |  | 12.3 |" in text
    assert "- calm day" in text
    data = json.loads(as_json.read_text(encoding="utf-8"))
    row = data["tables"][0]["rows"][0]
    assert row == {
        "who": "goose",
        "time": {"median_s": 0.002, "low_s": 0.001, "high_s": 0.003, "turns": 3},
        "error": 1.25e-7,
    }
    assert data["machine"]["cores"] == Machine.here().cores
