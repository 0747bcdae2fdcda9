"""The Residual Attention Network: its unit, its sizes against the paper's tables, and its way through the app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from apps.vision import VisionPipeline, build_vision_model
from apps.vision.model import count_parameters
from apps.vision.residual_attention import AttentionModule, BottomUpTopDown, ResidualAttention, ScanMask, Unit
from core.cli.compose import compose_run, plain
from core.errors import UserError
from core.init import parameter_groups
from core.train.session import build_data, build_task

SMALL = {"modules": (1, 1, 1), "layout": "cifar", "num_classes": 5}


def way(kind: str, channels: int = 32) -> nn.Module:
    return ScanMask(channels, 16, 0, 2) if kind == "rwkv7" else BottomUpTopDown(channels, 2)


@pytest.mark.parametrize("kind", ["conv", "rwkv7"])
def test_a_mask_of_zeros_leaves_the_trunk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is (1 + M) T: a mask of 0 is no module at all, a mask of 1 doubles the trunk."""
    module = AttentionModule(32, way(kind)).eval()
    x = torch.randn(2, 32, 8, 6)
    trunk = module.trunk(module.before(x))
    for value in (0.0, 1.0, -1.0):
        monkeypatch.setattr(module, "mask", lambda x, value=value: torch.full_like(x, value))
        torch.testing.assert_close(module(x), module.after((1 + value) * trunk))


@pytest.mark.parametrize("kind", ["conv", "rwkv7"])
def test_the_mask_is_soft_and_weighs_every_channel_and_place(kind: str) -> None:
    module = AttentionModule(32, way(kind)).eval()
    x = torch.randn(2, 32, 8, 6)
    mask = module.mask(module.before(x))
    assert mask.shape == x.shape
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.std() > 1e-3
    trunk = module.trunk(module.before(x))
    torch.testing.assert_close(module(x), module.after(trunk + mask * trunk))


@pytest.mark.parametrize("kind", ["conv", "rwkv7"])
def test_the_mask_sees_the_whole_image(kind: str) -> None:
    """The way of each kind carries one corner's change to the opposite corner."""
    net = way(kind).eval()
    with torch.no_grad():  # RWKV-7 starts with an output of zero
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(1, 32, 8, 8)
    changed = x.clone()
    changed[..., 0, 0] += 5.0
    difference = (net(x) - net(changed)).abs().sum(1)[0]
    assert difference[7, 7] > 0
    assert difference[7, 0] > 0
    assert difference[0, 7] > 0


def test_units_are_pre_activated() -> None:
    """Same size: identity plus convolutions of the activated input. Other sizes: both see the activated input."""
    unit = Unit(32, 32).eval()
    x = torch.randn(2, 32, 6, 6)
    nn.init.zeros_(unit.convs[2][2].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
    torch.testing.assert_close(unit(x), x)
    wider = Unit(32, 64, stride=2).eval()
    assert wider.shortcut is not None
    nn.init.zeros_(wider.convs[2][2].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
    normed = F.relu(F.batch_norm(x, torch.zeros(32), torch.ones(32)))
    torch.testing.assert_close(wider(x), F.conv2d(normed, wider.shortcut.weight, stride=2))


def trunk_depth(model: ResidualAttention) -> int:
    """Convolutions on the main path and the head: what the networks are named by."""
    beside = {
        id(m)
        for part in model.modules()
        if isinstance(part, AttentionModule)
        for m in (*part.way.modules(), *part.weigh.modules())
    }
    beside |= {id(unit.shortcut) for unit in model.modules() if isinstance(unit, Unit)}
    return 1 + sum(isinstance(m, nn.Conv2d) and id(m) not in beside for m in model.modules())


# Table 2 (ImageNet: parameters in millions, multiplications in 10^9) and table 6 (CIFAR-10: parameters) of the paper.
@pytest.mark.parametrize(
    ("layout", "modules", "depth", "millions", "giga"),
    [
        ("imagenet", (1, 1, 1), 56, 31.9, 6.2),
        ("imagenet", (1, 2, 3), 92, 51.3, 10.4),
        ("cifar", (2, 2, 2), 92, 1.9, None),
        ("cifar", (6, 6, 6), 236, 5.1, None),
        ("cifar", (1, 1, 1), 56, None, None),
    ],
)
def test_sizes_are_the_papers(
    layout: str, modules: tuple[int, ...], depth: int, millions: float | None, giga: float | None
) -> None:
    small = layout == "cifar"
    with torch.device("meta"):
        model = ResidualAttention(layout=layout, modules=modules, num_classes=10 if small else 1000)
        assert trunk_depth(model) == depth
        if millions is not None:
            assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.035)
        if giga is not None:
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 224, 224))
            assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize("mask", ["conv", "rwkv7"])
def test_every_parameter_gets_a_gradient(mask: str) -> None:
    model = ResidualAttention(**SMALL, mask=mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mixer." in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 4])).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("mask", ["conv", "rwkv7"])
@pytest.mark.parametrize(("layout", "size"), [("cifar", (32, 32)), ("cifar", (19, 40)), ("imagenet", (64, 96))])
def test_any_height_and_width(layout: str, size: tuple[int, int], mask: str) -> None:
    model = ResidualAttention(layout=layout, mask=mask, num_classes=5, in_chans=1).eval()
    features = model.forward_features(torch.randn(1, 1, *size))
    reduction = 32 if layout == "imagenet" else 4
    assert features.shape == (1, model.num_features, *(-(-edge // reduction) for edge in size))
    assert model.forward_head(features).shape == (1, 5)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.num_features)
    model.reset_classifier(7)
    assert model.forward_head(features).shape == (1, 7)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (1, model.num_features)


def test_weight_decay_reaches_matrices_only() -> None:
    model = ResidualAttention(**SMALL, mask="rwkv7")
    groups = {group["name"]: group["params"] for group in parameter_groups(model, 1e-3, 1e-4)}
    convs = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert convs <= {id(p) for p in groups["matrix"]}
    assert norms <= {id(p) for p in groups["vector"]}


def test_wrong_options_are_answered_with_the_right_ones() -> None:
    data = {"img_size": [32, 32], "in_chans": 3, "num_classes": 5}
    for wrong, match in (
        ({"layout": "mnist"}, "imagenet, cifar"),
        ({"mask": "attention"}, "conv, rwkv7"),
        ({"modules": [1, 2]}, "three numbers"),
        ({"embed_dim": 64}, "no option 'embed_dim'"),
    ):
        with pytest.raises(UserError, match=match):
            build_vision_model({"name": "residual_attention", **wrong}, data)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize("mask", ["conv", "rwkv7"])
def test_the_app_trains_reports_saves_and_loads_it(mask: str, tmp_path: Path) -> None:
    words = [
        "app=vision",
        "model=vision/attention56_cifar",
        f"model.mask={mask}",
        "data=vision/fake",
        "data.batch_size=8",
    ]
    config: dict[str, Any] = plain(compose_run(words))
    data = build_data(config)
    task = build_task(config, data)
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    still = [name for name, p in task.model.named_parameters() if torch.equal(p, before[name])]
    # The masks of RWKV-7 put out zero at first, and so their inner parameters get no gradient in the first steps.
    assert not [name for name in still if ".mixer." not in name]
    trainer.test(task, datamodule=data, verbose=False)
    page = task.write_report(tmp_path / "report", data, {}, [])
    assert page is not None
    assert "Residual Attention Network" in page.read_text()
    pipe = VisionPipeline(task.model, task.pretrained_config())
    pipe.save_pretrained(tmp_path / "model")
    picture = torch.rand(3, 32, 32)
    assert VisionPipeline.from_pretrained(tmp_path / "model", device="cpu")(picture) == pipe(picture)
