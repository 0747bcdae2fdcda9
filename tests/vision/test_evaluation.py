"""Evaluation: every number against a formula by hand, and the command that prints and writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, recall_score, top_k_accuracy_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from apps.vision import evaluation
from apps.vision.data import FakeImages
from apps.vision.evaluation import Answers, checked_factors, judge, size_at
from apps.vision.metrics import CalibrationError, bin_answers
from core.cli import main
from core.errors import UserError
from core.train.runs import RunFolder


def answers(count: int = 400, classes: int = 7) -> Answers:
    logits = 2 * torch.randn(count, classes)
    targets = torch.where(torch.rand(count) < 0.5, logits.argmax(1), torch.randint(classes, (count,)))
    return Answers(logits, targets, 10.0, 1000)


def test_calibration_by_hand() -> None:
    # Bins ((m-1)/15, m/15]: 0.9 twice in the 14th (one right), 1.0 in the 15th (right), 0.6 = 9/15 in the 9th (wrong).
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [1.0, 0.0], [0.4, 0.6]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 0])
    expected = (2 * abs(0.5 - 0.9) + 1 * abs(1 - 1) + 1 * abs(0 - 0.6)) / 4
    bins = bin_answers(probabilities, targets)
    assert float(bins.error) == pytest.approx(expected)
    assert bins.answers.nonzero().flatten().tolist() == [8, 13, 14]
    metric = CalibrationError()
    metric(probabilities[:3], targets[:3])
    metric(probabilities[3:], targets[3:])
    assert float(metric.compute()) == pytest.approx(expected)


def test_calibration_beside_torchmetrics() -> None:
    given = answers()
    probabilities = given.logits.softmax(-1)
    for bins in (15, 4):
        theirs = multiclass_calibration_error(probabilities, given.targets, 7, n_bins=bins, norm="l1")
        assert float(bin_answers(probabilities, given.targets, bins).error) == pytest.approx(float(theirs), abs=1e-5)


def test_accuracies_beside_scikit_learn() -> None:
    given = answers()
    found = judge(given, [f"c{i}" for i in range(7)])
    targets, scores = given.targets.numpy(), given.logits.softmax(-1).double()
    predicted = given.logits.argmax(1).numpy()
    assert found["top1"] == pytest.approx((predicted == targets).mean())
    assert found["top5"] == pytest.approx(top_k_accuracy_score(targets, scores.numpy(), k=5))
    assert found["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    classes = [entry["accuracy"] for entry in found["classes"].values()]
    assert classes == pytest.approx(recall_score(targets, predicted, average=None).tolist())
    assert found["loss"] == pytest.approx(-scores.log()[range(400), targets].mean().item())
    json.dumps(found, allow_nan=False)


def test_a_class_without_pictures_has_no_accuracy() -> None:
    given = Answers(torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]), torch.tensor([0, 0]), 1.0, 1)
    found = judge(given, ["a", "b", "c"])
    assert [entry["accuracy"] for entry in found["classes"].values()] == [0.5, None, None]
    assert found["mean_class_accuracy"] == 0.5
    assert "top5" not in found
    evaluation.show(Console(quiet=True), "test", found)


class Slow(nn.Module):
    """Answers with the mean colour, and holds some memory for a moment."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = (tuple(images.shape), self.training)
        torch.ones(30_000_000).sum()
        return images.mean((-1, -2))


def test_collecting_measures_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.25, 30.0, 30.5])  # the first batch warms up: 9 s
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    model = Slow().train()
    batches = [(torch.rand(2, 3, 4, 4), torch.tensor([0, 1])) for _ in range(4)]
    found = evaluation.collect(model, batches, torch.device("cpu"))
    assert found.images_per_second == 4.0  # median of 4, 8 and 4
    assert (model.seen, model.training) == (((2, 3, 4, 4), False), True)
    torch.testing.assert_close(found.logits[:2], batches[0][0].mean((-1, -2)))
    assert found.targets.tolist() == [0, 1] * 4


PEAKS = """
import torch
from apps.vision import evaluation

def peak(numbers):
    with evaluation.PeakMemory(torch.device("cpu")) as memory:
        torch.ones(numbers).sum()
    return memory.bytes

print(peak(1), peak(50_000_000), peak(1))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process set its peak back")
def test_peak_memory_is_that_of_the_pass() -> None:
    """In a process of its own: in this one, what earlier tests freed may be had without growing."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    small, large, again = map(int, done.stdout.split())
    assert large - small > 150e6
    assert large - again > 150e6  # an earlier peak is forgotten


def test_resolutions_are_whole_patches() -> None:
    assert size_at((32, 48), 0.5, (16, 16)) == (16, 32)  # 24 pixels are 1.5 patches: 2
    assert size_at((224, 224), 1.5, (16, 16)) == (336, 336)
    assert size_at((8, 8), 0.1, (2, 2)) == (2, 2)
    assert checked_factors([0.5, 4]) == [0.5, 4.0]
    assert checked_factors(2) == [2.0]
    for wrong in ([0], [-1.0], ["2x"], [17], [True]):
        with pytest.raises(UserError, match=r"eval\.resolutions"):
            checked_factors(wrong)
    for wrong in (0, 1.5, "x", True):
        with pytest.raises(UserError, match=r"eval\.bins"):
            evaluation.checked_bins(wrong)


def test_larger_pictures_come_in_smaller_batches() -> None:
    data = FakeImages(length=64, img_size=16, batch_size=8)
    data.setup()
    shapes = [tuple(images.shape) for images, _ in data.evaluation_loader("val", (32, 32))]
    assert shapes == [(2, 3, 32, 32)] * 8
    assert [len(images) for images, _ in data.evaluation_loader("val")] == [8, 8]
    first = data.evaluation_loader("test", (16, 16)).dataset[(0, 0)][0]
    assert torch.equal(first, data.test_set[0][0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two steps on made-up pictures of seven classes."""
    folder = tmp_path_factory.mktemp("evaluated")
    words = [
        "app=vision", "model=vision/pico", "model.depth=1", "data=vision/fake", "data.img_size=8", "data.batch_size=8",
        "data.num_classes=7", "data.length=56", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "logger=csv_only", "task.pictures=0",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *words]) == 0
    return RunFolder.open(folder / "runs")


def test_the_command(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"run={run.path}", "split=test", "eval.resolutions=[0.5,1,4]"]) == 0
    printed = capsys.readouterr().out
    for word in ("calibration error", "weakest", "images/s", "peak memory", "32 x 32", "0.5x", "evaluation.json"):
        assert word in printed
    written = json.loads(run.evaluation.read_text())
    assert written["options"] == {"resolutions": [0.5, 1, 4]}
    assert list(written["splits"]) == ["test"]
    found, metrics = written["splits"]["test"], run.read_metrics()["evaluations"][-1]["metrics"]
    for name in ("top1", "top5", "loss", "calibration_error"):
        assert found[name] == pytest.approx(metrics[f"test/{name}"], abs=1e-6)
    assert found["images"] == sum(entry["images"] for entry in found["classes"].values()) == 14
    rows = found["resolutions"]
    assert [row["img_size"] for row in rows] == [[4, 4], [8, 8], [32, 32]]
    assert rows[1]["loss"] == pytest.approx(found["loss"])
    assert rows[0]["loss"] != pytest.approx(found["loss"])
    assert all(row["images_per_second"] > 0 and row["peak_memory_bytes"] > 0 for row in rows)
    card = (run.report / "index.html").read_text()
    assert "Calibration" in card


def test_mistakes_are_told_before_any_work(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.read_metrics()
    assert main(["evaluate", f"run={run.path}", "eval.resolution=[2]"]) == 2
    assert "no option 'eval.resolution'; did you mean 'eval.resolutions'" in capsys.readouterr().err
    assert run.read_metrics() == before
