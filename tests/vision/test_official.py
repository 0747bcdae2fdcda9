"""Official Vision-RWKV checkpoints: files in their layout, and a forward pass written from their names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from apps.vision import VisionPipeline
from apps.vision.model import build_vision_model, count_parameters
from apps.vision.official import (
    from_official_name,
    load_official,
    official_options,
    official_pipeline,
    save_official,
    to_official_name,
)
from core.errors import UserError

DIM, DEPTH, PATCH, GRID, CLASSES = 8, 3, 2, 3, 5
KINDS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"gamma": True},
    "large": {"gamma": True, "key_norm": True, "head_hidden": 6},
}


def shapes(
    gamma: bool = False, key_norm: bool = False, head_hidden: int = 0, rate: int = 4
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint (reference: ``VRWKV`` in OpenGVLab/Vision-RWKV, mmcls's heads)."""

    def norm(name: str, size: int = DIM) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    found: dict[str, tuple[int, ...]] = {
        "backbone.pos_embed": (1, GRID * GRID, DIM),
        "backbone.patch_embed.projection.weight": (DIM, 3, PATCH, PATCH),
        "backbone.patch_embed.projection.bias": (DIM,),
    }
    for i in range(DEPTH):
        layer = f"backbone.layers.{i}"
        for name in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            found |= norm(f"{layer}.{name}")
        found |= {f"{layer}.{name}": (DIM,) for name in ("gamma1", "gamma2") if gamma}
        found |= {f"{layer}.att.{name}": (DIM,) for name in ("spatial_decay", "spatial_first")}
        mixes = [f"att.spatial_mix_{x}" for x in "kvr"] + [f"ffn.spatial_mix_{x}" for x in "kr"]
        found |= {f"{layer}.{name}": (1, 1, DIM) for name in mixes}
        found |= {f"{layer}.att.{name}.weight": (DIM, DIM) for name in ("key", "value", "receptance", "output")}
        found |= {f"{layer}.ffn.key.weight": (rate * DIM, DIM), f"{layer}.ffn.value.weight": (DIM, rate * DIM)}
        found |= {f"{layer}.ffn.receptance.weight": (DIM, DIM)}
        if key_norm:
            found |= norm(f"{layer}.att.key_norm") | norm(f"{layer}.ffn.key_norm", rate * DIM)
    found |= norm("backbone.ln1")
    heads = (
        {"head.0": (head_hidden, DIM), "head.2": (CLASSES, head_hidden)} if head_hidden else {"head.fc": (CLASSES, DIM)}
    )
    for name, (rows, columns) in heads.items():
        found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return found


def checkpoint(**kind: Any) -> dict[str, Tensor]:
    return {name: 0.4 * torch.randn(shape) for name, shape in shapes(**kind).items()}


def norm(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def mixed(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x mu + Q-Shift(x) (1 - mu) for x (B, N, C)."""
    image = x.transpose(1, 2).unflatten(2, (GRID, GRID))
    left, right, up, down = image.chunk(4, dim=1)
    shifted = torch.cat(
        (
            F.pad(left, (1, 0))[..., :-1],
            F.pad(right, (0, 1))[..., 1:],
            F.pad(up, (0, 0, 1, 0))[..., :-1, :],
            F.pad(down, (0, 0, 0, 1))[..., 1:, :],
        ),
        dim=1,
    )
    return x * tensors[name] + shifted.flatten(2).transpose(1, 2) * (1 - tensors[name])


def spatial_mix(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    r, k, v = (
        mixed(tensors, f"{name}.spatial_mix_{mix}", x) @ tensors[f"{name}.{linear}.weight"].T
        for mix, linear in (("r", "receptance"), ("k", "key"), ("v", "value"))
    )
    places = torch.arange(GRID * GRID)
    distance = (places[:, None] - places).abs()[:, :, None]
    decay, first = (tensors[f"{name}.spatial_{part}"] / len(places) for part in ("decay", "first"))
    exponent = torch.where(distance > 0, -(distance - 1) * decay, first) + k[:, None]
    y = (exponent.softmax(2) * v[:, None]).sum(2)
    if f"{name}.key_norm.weight" in tensors:
        y = norm(tensors, f"{name}.key_norm", y)
    return (r.sigmoid() * y) @ tensors[f"{name}.output.weight"].T


def channel_mix(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = (mixed(tensors, f"{name}.spatial_mix_k", x) @ tensors[f"{name}.key.weight"].T).relu().square()
    if f"{name}.key_norm.weight" in tensors:
        hidden = norm(tensors, f"{name}.key_norm", hidden)
    gate = mixed(tensors, f"{name}.spatial_mix_r", x) @ tensors[f"{name}.receptance.weight"].T
    return gate.sigmoid() * (hidden @ tensors[f"{name}.value.weight"].T)


def official_forward(tensors: dict[str, Tensor], images: Tensor, post_norm: bool) -> Tensor:
    patches = "backbone.patch_embed.projection"
    x = F.conv2d(images, tensors[f"{patches}.weight"], tensors[f"{patches}.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + tensors["backbone.pos_embed"]
    x = norm(tensors, "backbone.layers.0.ln0", x)
    for i in range(DEPTH):
        layer = f"backbone.layers.{i}"
        for number, part, mix in ((1, "att", spatial_mix), (2, "ffn", channel_mix)):
            name = f"{layer}.ln{number}"
            if post_norm:
                y = norm(tensors, name, mix(tensors, f"{layer}.{part}", x))
            else:
                y = mix(tensors, f"{layer}.{part}", norm(tensors, name, x))
            x = x + tensors.get(f"{layer}.gamma{number}", torch.ones(())) * y
    x = norm(tensors, "backbone.ln1", x).mean(1)
    if "head.0.weight" in tensors:
        x = F.linear(x, tensors["head.0.weight"], tensors["head.0.bias"]).tanh()
        return F.linear(x, tensors["head.2.weight"], tensors["head.2.bias"])
    return F.linear(x, tensors["head.fc.weight"], tensors["head.fc.bias"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_computes_what_the_checkpoint_means(kind: str, wrapper: str | None, tmp_path: Path) -> None:
    tensors = checkpoint(**KINDS[kind])
    # mmcv writes plain facts beside the weights.
    torch.save({"meta": {"epoch": 300, "CLASSES": None}, wrapper: tensors} if wrapper else tensors, tmp_path / "a.pth")
    images = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    for post_norm in (None, True, False):
        expected = KINDS[kind].get("gamma", False) if post_norm is None else post_norm
        model = load_official(tmp_path / "a.pth", post_norm=post_norm)
        torch.testing.assert_close(model(images), official_forward(tensors, images, expected), atol=1e-5, rtol=1e-4)
    assert not model.training
    model(images).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert model(torch.randn(1, 3, 10, 7)).shape == (1, CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_written_back_it_is_the_same_file(kind: str, tmp_path: Path) -> None:
    tensors = checkpoint(**KINDS[kind])
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    save_official(load_official(tmp_path / "a.pth"), tmp_path / "b.pth")
    written = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_names_there_and_back() -> None:
    names = [name for kind in KINDS.values() for name in shapes(**kind)]
    ours = [from_official_name(name) for name in names]
    assert [to_official_name(name) for name in ours] == names
    assert from_official_name("backbone.layers.11.att.spatial_decay") == "backbone.blocks.11.att.spatial_decay"
    assert from_official_name("backbone.ln1.weight") == "backbone.ln_out.weight"
    assert from_official_name("backbone.layers.1.ln1.weight") == "backbone.blocks.1.ln1.weight"
    assert from_official_name("head.bias") == "head.bias"
    assert from_official_name("optimizer") == "optimizer"


# Millions of the released models (table 1 has 6.2, 23.8, 93.7, 334.9), L with the positions of its pre-training.
@pytest.mark.parametrize(
    ("size", "pixels", "millions"),
    [("tiny", 224, 6.155), ("small", 224, 23.820), ("base", 224, 93.65), ("large", 192, 334.88)],
)
def test_parameter_counts(size: str, pixels: int, millions: float, model_config: Any) -> None:
    data = {"img_size": pixels, "in_chans": 3, "num_classes": 1000}
    with torch.device("meta"):
        model = build_vision_model(model_config(f"vrwkv_{size}"), data)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("size", ["pico", "nano", "tiny", "small", "base", "large"])
def test_its_mixer_goes_into_every_size_at_equal_parameters(size: str, model_config: Any) -> None:
    data = {"img_size": [224, 224], "in_chans": 3, "num_classes": 1000}
    with torch.device("meta"):
        ours = count_parameters(build_vision_model(model_config(size), data))
        theirs = build_vision_model({**model_config(size), "mixer": "bi_wkv"}, data)
    assert type(theirs.backbone.blocks[0].ffn).__name__ == "GatedChannelMix"
    assert abs(count_parameters(theirs) / ours - 1) < 0.005


def test_a_pipeline_saves_and_loads_it(tmp_path: Path) -> None:
    torch.save({"state_dict": checkpoint(**KINDS["large"])}, tmp_path / "vrwkv_l.pth")
    pipe = official_pipeline(tmp_path / "vrwkv_l.pth", list("abcde"))
    pipe.save_pretrained(tmp_path / "model")
    loaded = VisionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    picture = torch.rand(3, 9, 12)
    assert loaded(picture) == pipe(picture)
    with pytest.raises(UserError, match="class_names has 3 names"):
        official_pipeline(tmp_path / "vrwkv_l.pth", list("abc"))


def test_without_a_head_there_are_features(tmp_path: Path) -> None:
    tensors = {name: x for name, x in checkpoint().items() if not name.startswith("head.")}
    torch.save(tensors, tmp_path / "a.pth")
    assert load_official(tmp_path / "a.pth")(torch.randn(1, 3, 6, 6)).shape == (1, DIM)
    with pytest.raises(UserError, match="has no head"):
        official_pipeline(tmp_path / "a.pth")


def test_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    tensors = {**checkpoint(), "head.fc.weight": torch.zeros(1000, DIM), "head.fc.bias": torch.arange(1000.0)}
    torch.save(tensors, tmp_path / "a.pth")
    answer = official_pipeline(tmp_path / "a.pth")(torch.rand(3, 6, 6))
    assert not isinstance(answer, list)
    assert answer.index == 999
    assert "toilet tissue" in answer.label


class Stranger:
    """Reading it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("read",)


def test_other_files_are_refused(tmp_path: Path) -> None:
    def refused(content: Any, match: str) -> None:
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match=match):
            load_official(tmp_path / "a.pth")

    tensors = checkpoint()
    short = {name: x for name, x in tensors.items() if name != "backbone.layers.1.att.key.weight"}
    refused(short, "missing backbone.layers.1.att.key.weight")
    refused({**tensors, "backbone.extra": torch.zeros(1)}, "left over backbone.extra")
    refused({**tensors, "backbone.ln1.bias": torch.zeros(4)}, r"backbone.ln1.bias of shape \(4,\) where \(8,\)")
    refused({**tensors, "backbone.layers.0.att.time_maa_x": torch.zeros(1)}, "VRWKV6")
    refused({"emb.weight": torch.zeros(4, 4)}, "no Vision-RWKV checkpoint")
    refused({**tensors, "backbone.pos_embed": torch.zeros(1, 6, DIM)}, "6 positions, no square")
    refused({"state_dict": tensors, "meta": Stranger()}, "could run code")
    with pytest.raises(UserError, match="There is no file"):
        load_official(tmp_path / "nowhere.pth")
    assert official_options(tensors)[0]["post_norm"] is False
