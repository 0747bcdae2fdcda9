"""The task: losses and metrics against their definitions, mixing, and what it writes for the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from apps.vision import VisionPipeline, build_vision_model
from apps.vision.data import FakeImages
from apps.vision.model import count_parameters
from apps.vision.task import VisionTask
from core.errors import UserError

MODEL = {"embed_dim": 16, "depth": 1, "head_dim": 8, "patch_size": 8}
OPTIM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}


@pytest.fixture
def data() -> FakeImages:
    module = FakeImages(length=32, num_classes=7, img_size=16, batch_size=8)
    module.setup()
    return module


def task(data: FakeImages, **options: Any) -> VisionTask:
    made = VisionTask({**MODEL, **options.pop("model", {})}, OPTIM, data.describe(), **options)
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # no trainer here
    made.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return made


def batch(data: FakeImages) -> tuple[torch.Tensor, torch.Tensor]:
    return next(iter(data.test_dataloader()))


def test_the_loss_is_smoothed_cross_entropy(data: FakeImages) -> None:
    made, (images, targets) = task(data, label_smoothing=0.2).eval(), batch(data)
    smooth = F.one_hot(targets, 7) * 0.8 + 0.2 / 7
    expected = -(made(images).log_softmax(-1) * smooth).sum(-1).mean()
    torch.testing.assert_close(made.training_step((images, targets), 1), expected)


def test_mixing_changes_the_batch_and_only_if_asked(data: FakeImages) -> None:
    images, targets = batch(data)
    seen: list[torch.Tensor] = []
    for options in ({}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.0}):
        made = task(data, **options)
        made.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        assert made.training_step((images, targets), 1).isfinite()
    assert [torch.equal(images, x) for x in seen] == [True, False, False, True]


def test_metrics_count_right_answers(data: FakeImages) -> None:
    made, (images, targets) = task(data).eval(), batch(data)
    made.validation_step((images, targets), 1)
    logits = made(images)
    values = made.val_metrics.compute()
    assert values["val/top1"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    top5 = (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()
    assert values["val/top5"] == pytest.approx(top5)


def test_few_classes_have_no_top5() -> None:
    module = FakeImages(length=8, num_classes=3, img_size=16)
    module.setup()
    assert set(task(module).val_metrics.keys()) == {"val/top1"}


def test_hyper_parameters_load_without_running_code(data: FakeImages, tmp_path: Path) -> None:
    made = task(data, mixup=0.2)
    torch.save(dict(made.hparams), tmp_path / "hparams.pt")
    loaded = torch.load(tmp_path / "hparams.pt", weights_only=True)
    assert loaded["mixup"] == 0.2
    again = VisionTask(**loaded)
    assert again.state_dict().keys() == made.state_dict().keys()


@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_the_pretrained_config_rebuilds_the_model(data: FakeImages, mixer: str) -> None:
    made = task(data, model={"mixer": mixer})
    config = made.pretrained_config()
    rebuilt = build_vision_model(config["model"], config["data"])
    assert count_parameters(rebuilt) == count_parameters(made.model)
    assert config["model"]["hidden_dim"] == made.model.hidden_dim
    rebuilt.load_state_dict(made.model.state_dict())
    answer = VisionPipeline(rebuilt, config)(torch.rand(3, 16, 16))
    assert not isinstance(answer, list)
    assert answer.label in data.class_names


def test_the_report_stands_on_the_test_images(data: FakeImages, tmp_path: Path) -> None:
    made = task(data)
    assert made._answers == []  # no test has run: the report makes its own pass
    (tmp_path / "config.yaml").write_text("seed: 123\n")
    page = made.write_report(tmp_path / "report", data, {}, [{"epoch": 0, "train/loss": 2.0, "val/top1": 0.1}])
    text = page.read_text()
    images, targets = batch(data)
    wrong = int((made.eval()(images).argmax(1) != targets).sum())
    assert f"{wrong} of {len(targets)}" in text
    assert f"{count_parameters(made.model):,}" in text
    assert "seed: 123" in text
    assert "greylag evaluate run=" in text


def test_wrong_smoothing_is_refused(data: FakeImages) -> None:
    with pytest.raises(UserError, match="label_smoothing"):
        task(data, label_smoothing=1.0)
