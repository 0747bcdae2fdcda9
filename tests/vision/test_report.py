"""The report: everything in one file, mistakes in the right order, and nothing of a user's text taken for HTML."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apps.vision.report import (
    ReportFacts,
    confusion_counts,
    curves_of,
    hard_ones,
    least_certain,
    right_ones,
    worst_mistakes,
    write_report,
)

# Five images of three classes; image 1 (surely) and image 4 (barely) are wrong.
PROBABILITIES = torch.tensor([[0.9, 0.05, 0.05], [0.02, 0.95, 0.03], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])
TARGETS = torch.tensor([0, 0, 1, 2, 2])


@pytest.fixture
def facts() -> ReportFacts:
    return ReportFacts(
        title="shapes",
        subtitle="a model & its <data>",
        class_names=["disc", "box", "<b>star</b>"],
        probabilities=PROBABILITIES,
        targets=TARGETS,
        images=torch.rand(5, 3, 8, 8),
        headline=[("60.00%", "test accuracy")],
        history=[
            {"epoch": i, "train/loss": 1 / (i + 1), "val/loss": 1.1 / (i + 1), "val/top1": i / 12} for i in range(12)
        ],
        model=[("parameters", "1,234")],
        run=[("seed", "7")],
        config="model:\n  name: vrwkv7\n",
        commands=[("Classify:", "greylag predict run=runs/x input=photo.jpg")],
    )


def test_one_file_holds_everything(facts: ReportFacts, tmp_path: Path) -> None:
    page = write_report(tmp_path / "report", facts)
    text = page.read_text()
    for wanted in (
        "60.00%",
        "test accuracy",
        "1,234",
        "name: vrwkv7",
        "greylag predict run=runs/x",
        "2 of 5 are wrong",
    ):
        assert wanted in text
    assert "a model &amp; its &lt;data&gt;" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 6
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1])[:8] == b"\x89PNG\r\n\x1a\n"
    names = {p.name for p in page.parent.iterdir()}
    assert names == {
        "index.html",
        "curves.png",
        "confusion.png",
        "per_class.png",
        "reliability.png",
        "right.png",
        "mistakes.png",
    }


def test_mistakes_come_with_the_surest_first(facts: ReportFacts) -> None:
    assert worst_mistakes(facts) == [1, 4]
    assert right_ones(facts) == [0, 2, 3]
    assert least_certain(facts) == [3, 2, 0]
    assert hard_ones(facts) == [1, 4, 3, 2, 0]
    assert hard_ones(replace(facts, wrong_samples=2)) == [1, 4]
    assert confusion_counts(facts).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_a_perfect_model_has_a_report_too(facts: ReportFacts, tmp_path: Path) -> None:
    perfect = replace(facts, targets=PROBABILITIES.argmax(1), history=[])
    text = write_report(tmp_path, perfect).read_text()
    assert "No image is classified wrongly" in text
    assert not (tmp_path / "curves.png").exists()


def test_many_classes_leave_the_matrix_out(facts: ReportFacts, tmp_path: Path) -> None:
    many = replace(
        facts, class_names=[f"c{i}" for i in range(120)], probabilities=torch.rand(5, 120), targets=torch.arange(5)
    )
    write_report(tmp_path, many)
    assert not (tmp_path / "confusion.png").exists()
    assert (tmp_path / "per_class.png").exists()


def test_curves_take_what_the_history_has() -> None:
    curves = curves_of([{"epoch": 0, "train/loss_epoch": 2.0}, {"epoch": 1, "val/loss": 1.0, "val/top1": 0.5}, {}])
    assert curves == {"train/loss": ([1.0], [2.0]), "val/loss": ([2.0], [1.0]), "val/top1": ([2.0], [0.5])}
