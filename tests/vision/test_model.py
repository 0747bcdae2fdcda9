"""The VRWKV-7 model: any image size, every scan and shift, gradients everywhere, the twin.

What timm asks of it is in test_timm.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apps.vision.model import VRWKV7, build_vision_model, count_parameters
from core.errors import UserError
from core.init import parameter_groups
from core.layers import SCANS

DATA = {"img_size": [16, 16], "in_chans": 3, "num_classes": 7}


def small(**options: Any) -> VRWKV7:
    """A model of a few milliseconds: 4 x 4 tokens, 4 heads, 2 blocks."""
    defaults: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "num_classes": 7,
        "embed_dim": 32,
        "depth": 2,
        "head_dim": 8,
    }
    return VRWKV7(**{**defaults, **options})


def awaken(model: nn.Module) -> nn.Module:
    """Leave the start, where branches end in zero matrices and so pass no gradient on."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("shift", ["causal", "bidirectional", "quad"])
@pytest.mark.parametrize("scan", SCANS)
def test_every_parameter_gets_a_gradient(scan: str, shift: str) -> None:
    model = awaken(small(scan=scan, token_shift=shift))
    F.cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([1, 4])).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("mixer", ["rwkv7", "attention", ["rwkv7", "attention"]])
def test_every_mixer_trains_all_its_parameters(mixer: Any) -> None:
    model = awaken(small(mixer=mixer, scan="split2"))
    F.cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([1, 4])).backward()
    # A softmax does not feel a constant added to all keys: that third of the bias is zero up to rounding.
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (12, 4), (17, 30), (3, 2), (64, 64)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    model = small().eval()
    features = model.forward_features(torch.randn(2, 3, *size))
    tokens = -(-size[0] // 4) * -(-size[1] // 4)
    assert features.shape == (2, tokens, 32)
    assert model.forward_head(features).shape == (2, 7)


def test_odd_edges_are_padded_with_zeros_at_the_bottom_and_right() -> None:
    model = small().eval()
    image = torch.randn(1, 3, 14, 15)
    torch.testing.assert_close(model(image), model(F.pad(image, (0, 1, 0, 2))))


def test_tokens_are_in_raster_order_on_a_rectangle() -> None:
    """Before training every branch ends in zeros, so a token shows its own patch and nothing else."""
    model = small(img_size=(8, 16)).eval()
    assert model.grid_size == (2, 4)
    image = torch.randn(1, 3, 8, 16)
    changed = image.clone()
    changed[..., :4, 12:] += 1.0
    difference = (model.forward_features(image) - model.forward_features(changed)).abs().sum(-1).flatten()
    assert (difference > 0).nonzero().flatten().tolist() == [3]


def test_position_embedding_keeps_a_plane_when_resampled() -> None:
    """A ramp over the grid, resampled to a wider one, is still a ramp with the same ends' order."""
    model = small().eval()
    with torch.no_grad():
        ramp = torch.linspace(-1, 1, 4)[None, :].expand(4, 4)
        model.pos_embed.copy_(ramp.reshape(1, 16, 1).expand(1, 16, 32))
        model.patch_embed.proj.weight.zero_()
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.zeros(1, 3, 16, 32))
    grid = seen[0][0, :, 0].view(4, 8)
    torch.testing.assert_close(grid, grid[:1].expand(4, 8))
    assert (grid[0].diff() > 0).all()
    model(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(seen[1], model.pos_embed)


def test_image_reversal_mirrors_a_bidirectional_model() -> None:
    """Turned by 180 degrees, tokens see the same neighbourhood from the other side, if the weights are even.

    The scan averages both directions, so without a shift and a position embedding the features just turn too.
    """
    model = awaken(small(scan="bidirectional", token_shift="none")).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        # A patch turned by itself must give the same token.
        weight = model.patch_embed.proj.weight
        weight.copy_((weight + weight.flip(-1, -2)) / 2)
    image = torch.randn(1, 3, 12, 20)
    straight, turned = model.forward_features(image), model.forward_features(image.flip(-1, -2))
    torch.testing.assert_close(turned.flip(1), straight, atol=1e-5, rtol=1e-4)


def test_drop_path_works_in_training_only() -> None:
    model = awaken(small(drop_path_rate=0.5, depth=3))
    image = torch.randn(1, 3, 16, 16).expand(8, -1, -1, -1)
    assert model.train()(image).std(0).sum() > 1e-3
    assert model.eval()(image).std(0).sum() < 1e-4


@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_it_can_learn_eight_pictures_by_heart(mixer: str) -> None:
    model = small(mixer=mixer, num_classes=8)
    images, targets = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimiser = torch.optim.AdamW(parameter_groups(model, 3e-3, 0.0))
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimiser.step()
    assert (model.eval()(images).argmax(1) == targets).all()
    assert loss.item() < 0.2


def test_weight_decay_reaches_matrices_only() -> None:
    model = small()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for g in parameter_groups(model, 1e-3, 0.05) if g["weight_decay"] for p in g["params"]}
    assert "pos_embed" not in decayed
    assert "head.weight" in decayed
    assert "patch_embed.proj.weight" in decayed
    assert not any(p.ndim < 2 for n, p in model.named_parameters() if n in decayed)
    assert decayed.isdisjoint(model.no_weight_decay())


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "base", "large"])
def test_the_twin_has_the_same_number_of_parameters(size: str, model_config: Any) -> None:
    data = {"img_size": [224, 224], "in_chans": 3, "num_classes": 1000}
    with torch.device("meta"):
        ours = count_parameters(build_vision_model(model_config(size), data))
        twin = count_parameters(build_vision_model({**model_config(size), "mixer": "attention"}, data))
    assert abs(twin / ours - 1) < 0.001


def test_wrong_options_are_answered_with_the_right_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'embed_dim'"):
        build_vision_model({"embed_dm": 32}, DATA)
    with pytest.raises(UserError, match="the data decide"):
        build_vision_model({"num_classes": 3}, DATA)
    with pytest.raises(UserError, match="no option 'device'"):
        build_vision_model({"device": "cuda"}, DATA)
    with pytest.raises(UserError, match="vrwkv7"):
        build_vision_model({"name": "resnet"}, DATA)
    with pytest.raises(UserError, match="'avg', 'max'"):
        build_vision_model({"global_pool": "token"}, DATA)
    for wrong in ({"embed_dim": 30, "head_dim": 16}, {"mixer": "atention"}, {"scan": "split4", "embed_dim": 64}):
        with pytest.raises(UserError, match=r"head_dim|attention|heads"):
            build_vision_model(wrong, DATA)
