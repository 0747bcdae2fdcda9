"""Layer decay and Muon's division on top of the core's groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from apps.vision.model import build_vision_model
from core.errors import UserError
from core.train.groups import layer_scales, optimizer_groups
from core.train.optim import build_optimizer

MODEL = {"embed_dim": 16, "depth": 3, "head_dim": 8, "patch_size": 4}
DATA = {"img_size": 8, "in_chans": 3, "num_classes": 5}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_vision_model(MODEL, DATA)


def settings(model: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The value of `key` for each parameter by name; each parameter is in one group alone."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group[key]) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def test_layer_decay_scales_the_core_s_rates_as_timm_does(model: nn.Module) -> None:
    plain = optimizer_groups(model, 0.1, 0.3)
    groups = optimizer_groups(model, 0.1, 0.3, layer_decay=0.5)
    theirs = settings(model, param_groups_layer_decay(model, layer_decay=0.5), "lr_scale")
    ours, before = settings(model, groups, "lr"), settings(model, plain, "lr")
    for name, scale in theirs.items():
        assert ours[name] == pytest.approx(before[name] * scale), name
    assert settings(model, groups, "weight_decay") == settings(model, plain, "weight_decay")
    assert ours["head.weight"] == 0.1
    w0 = next(name for name in ours if name.startswith("backbone.blocks.0.") and name.endswith("w0"))
    assert ours[w0] == pytest.approx(2 * 0.1 * layer_scales(model, 0.5)[w0])
    assert len({group["name"] for group in groups}) == len(groups)


def test_a_factor_of_one_changes_nothing(model: nn.Module) -> None:
    assert settings(model, optimizer_groups(model, 0.1, 0.3, layer_decay=1.0), "lr") == settings(
        model, optimizer_groups(model, 0.1, 0.3), "lr"
    )


def test_wrong_layer_decay_is_explained(model: nn.Module) -> None:
    for factor in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="layer_decay"):
            optimizer_groups(model, 0.1, 0.0, layer_decay=factor)
    with pytest.raises(UserError, match="group_matcher"):
        optimizer_groups(nn.Linear(2, 2), 0.1, 0.0, layer_decay=0.5)


def test_muon_gets_the_matrices_inside_the_model_alone(model: nn.Module) -> None:
    optimizer = build_optimizer(model, {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "momentum": 0.9})
    fallback = settings(model, optimizer.param_groups, "use_fallback")
    wide = {name for name, p in model.named_parameters() if name.endswith(".weight") and p.squeeze().ndim >= 2}
    assert {name for name, other in fallback.items() if not other} == wide - {"head.weight"}
    model(torch.rand(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        assert ("momentum_buffer" in state) is not fallback[name], name
        assert ("exp_avg_sq" in state) is fallback[name], name


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "adamuon", "lion", "nesterov"])
def test_optimisers_take_steps_with_layer_decay(name: str) -> None:
    model = build_vision_model(MODEL, DATA)
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    optimizer = build_optimizer(model, {"name": name, "lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.7})
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
