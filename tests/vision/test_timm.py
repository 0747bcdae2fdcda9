"""VRWKV-7 as a model of timm: what timm's own suite (tests/test_models.py) asks of every model, and what its tools do.

TorchScript and torch.fx have no test here: both are refused. The scans and the operator decide by shapes and devices in
plain Python, which fx cannot trace; TorchScript is deprecated and on its way out of timm. ``torch.export``, their
successor, is tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters, load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from apps.vision import VRWKV7, VisionPipeline, build_vision_model
from apps.vision.model import count_parameters
from apps.vision.registry import SIZES, checkpoint_filter_fn
from core.init import parameter_groups

NAMES = [f"vrwkv7_{size}_patch16_224" for size in SIZES]
NANO = NAMES[0]


def shake(model: nn.Module) -> VRWKV7:
    """Leave the start, where every branch ends in a zero matrix and so does nothing."""
    assert isinstance(model, VRWKV7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def nano(**options: Any) -> VRWKV7:
    """Four blocks on 4 x 4 tokens, with weights of a trained model's kind; evaluating."""
    return shake(timm.create_model(NANO, **{"img_size": 64, "depth": 4, "num_classes": 7, **options})).eval()


def filled(name: str, **options: Any) -> VRWKV7:
    """A large model with any weights at all: RWKV-7's own initialisation takes half a minute for 24 wide layers."""
    model = timm.create_model(name, device="meta", **options).to_empty(device="cpu")
    assert isinstance(model, VRWKV7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return model


# ------------------------------------------------------------------------------------------------- registry, config


def test_importing_the_app_registers_the_models_and_importing_core_waits_for_nothing() -> None:
    program = (
        "import sys, core; assert 'torch' not in sys.modules and 'timm' not in sys.modules;"
        "import timm; assert not timm.list_models('vrwkv7*');"
        "import apps.vision; print(*timm.list_models('vrwkv7*'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(NAMES)
    assert "Overwriting" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_default_config(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert isinstance(model, VRWKV7)
    config, weights = model.pretrained_cfg, model.state_dict()
    assert config["architecture"] == name
    assert f"{config['classifier']}.weight" in weights
    assert f"{config['first_conv']}.weight" in weights
    assert config["num_classes"] == model.num_classes == model.get_classifier().out_features == 1000
    assert config["input_size"] == (model.in_chans, *model.patch_embed.img_size) == (3, 224, 224)
    assert model.grid_size == (14, 14)
    assert not timm.list_pretrained(name), "no weights are claimed"


def test_the_data_pipeline_of_timm_fits_the_model() -> None:
    model = nano(img_size=224)
    transform = create_transform(**resolve_model_data_config(model))
    image = transform(Image.new("RGB", (300, 260), (255, 0, 10)))
    assert isinstance(image, Tensor)
    assert image.shape == (3, 224, 224)
    assert model(image[None]).shape == (1, 7)


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_of_a_size_is_the_registered_model(size: str, model_config: Callable[[str], Any]) -> None:
    with torch.device("meta"):
        model = build_vision_model(model_config(size), {"img_size": [224, 224], "in_chans": 3, "num_classes": 1000})
    named = timm.create_model(f"vrwkv7_{size}_patch16_224", device="meta")
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, named)]
    assert shapes[0] == shapes[1]
    scans = [[str(block.att.scan) for block in m.blocks] for m in (model, named)]
    assert scans[0] == scans[1]


def test_parameter_counts_in_the_readme(repository: Path) -> None:
    text = (repository / "apps" / "vision" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(SIZES)
    for size, width, depth, head, ours, twin in rows:
        assert SIZES[size] == {"embed_dim": int(width), "depth": int(depth), "head_dim": int(head)}
        for mixer, stated in (("rwkv7", ours), ("attention", twin)):
            model = timm.create_model(f"vrwkv7_{size}_patch16_224", mixer=mixer, device="meta")
            assert f"{count_parameters(model):,}" == stated, (size, mixer)


# ------------------------------------------------------------------------------------------------ forward, backward


@pytest.mark.parametrize("name", NAMES[:3])
def test_forward_at_the_default_size(name: str) -> None:
    logits = timm.create_model(name).eval()(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name: str) -> None:
    create = filled if name in NAMES[3:] else timm.create_model
    model = create(name, num_classes=42, img_size=64).train()
    logits = model(torch.randn(2, 3, 64, 64))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "attention"}, {"mixer": ["rwkv7", "attention"]}, {"scan": "split4"}, {"scan": "alternate4"},
        {"mixer": "bi_wkv"}, {"token_shift": "none"}, {"init_values": 1e-5}, {"pre_norm": True, "post_norm": True},
        {"mixer_kwargs": {"rwkv7": {"lora_ranks": [8, 8, 8, 8]}}}, {"in_chans": 1}, {"global_pool": "max"},
    ],
)  # fmt: skip
def test_options_reach_the_model(options: dict[str, Any]) -> None:
    model = nano(**options)
    logits = model(torch.randn(2, options.get("in_chans", 3), 64, 64))
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_drop_rates_reach_the_model() -> None:
    model = nano(drop_rate=0.2, pos_drop_rate=0.1, drop_path_rate=0.3)
    assert (model.head_drop.p, model.pos_drop.p) == (0.2, 0.1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_device_and_dtype() -> None:
    assert {p.device.type for p in timm.create_model(NANO, device="meta").parameters()} == {"meta"}
    model = timm.create_model(NANO, depth=1, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_export() -> None:
    model, image = nano(depth=2), torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (image,))
    torch.testing.assert_close(program.module()(image), model(image))


# --------------------------------------------------------------------------------------------------- head, features


def test_features_and_head_make_the_forward() -> None:
    model, image = nano(), torch.randn(2, 3, 64, 64)
    features = model.forward_features(image)
    assert features.shape == (2, 16, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(image), rtol=0, atol=0)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(before), model(image), rtol=0, atol=0)


def test_pooling() -> None:
    model = nano()
    features = torch.randn(2, 16, 128)
    mean, peak = features.mean(1), features.amax(1)
    for kind, wanted in {"avg": mean, "max": peak, "avgmax": (mean + peak) / 2, "": features}.items():
        torch.testing.assert_close(model.pool(features, kind), wanted)
        model.reset_classifier(0, kind)
        torch.testing.assert_close(model.forward_head(features), wanted)


def test_reset_classifier() -> None:
    model, image = nano().train(), torch.randn(2, 3, 64, 64)
    model.reset_classifier(9)
    assert model(image).shape == (2, 9)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(image).shape == (2, model.num_features)
    torch.testing.assert_close(model(image), model.forward_features(image).mean(1))
    assert nano(num_classes=0)(image).shape == (2, 128)
    model.reset_classifier(0, "")
    assert model(image).shape == (2, 16, 128)


@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_intermediates_are_what_the_blocks_put_out(size: tuple[int, int]) -> None:
    model, image = nano(), torch.randn(2, 3, *size)
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for block in model.blocks]
    features = model.forward_features(image)
    for hook in hooks:
        hook.remove()
    final, tokens = model.forward_intermediates(image, output_fmt="NLC")
    torch.testing.assert_close(final, features, rtol=0, atol=0)
    torch.testing.assert_close(tokens, seen, rtol=0, atol=0)
    maps = model.forward_intermediates(image, indices=[0, -1], intermediates_only=True)
    assert [m.shape for m in maps] == [(2, 128, size[0] // 16, size[1] // 16)] * 2
    for m, wanted in zip(maps, (seen[0], seen[3]), strict=True):
        torch.testing.assert_close(m.flatten(2).transpose(1, 2), wanted, rtol=0, atol=0)


def test_forms_of_intermediates() -> None:
    model, image = nano(), torch.randn(1, 3, 64, 64)
    final, (last,) = model.forward_intermediates(image, 1, norm=True, output_fmt="NLC")
    torch.testing.assert_close(last, final)
    answer = model.forward_intermediates(image, 2, output_dict=True)
    assert isinstance(answer, dict)
    assert set(answer) == {"image_intermediates", "image_features"}
    torch.testing.assert_close(answer["image_features"], final)
    assert len(answer["image_intermediates"]) == 2
    calls: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _m, _a, i=i: calls.append(i))
    model.forward_intermediates(image, [1], stop_early=True)
    assert calls == [0, 1]
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(image, output_fmt="NHWC")


def test_features_only_gives_maps_with_channels_and_strides() -> None:
    whole = nano()
    model = timm.create_model(NANO, img_size=64, depth=4, features_only=True).eval()
    assert model.feature_info.channels() == [128, 128, 128]
    assert model.feature_info.reduction() == [16, 16, 16]
    modules = dict(model.model.named_modules())
    assert all(name in modules for name in model.feature_info.module_name())
    assert isinstance(model.model.backbone.ln_out, nn.Identity)
    assert isinstance(model.model.head, nn.Identity)
    model.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in model.model.state_dict()})
    for image in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 40, 100)):
        maps = model(image)
        assert [m.shape[2:] for m in maps] == [(-(-image.shape[2] // 16), -(-image.shape[3] // 16))] * 3
        torch.testing.assert_close(maps, whole.forward_intermediates(image, 3, intermediates_only=True))


def test_features_only_drops_the_blocks_that_nothing_needs() -> None:
    model = timm.create_model(NANO, img_size=64, depth=4, features_only=True, out_indices=(0, 2))
    assert len(model.model.blocks) == 3
    assert [m.shape for m in model(torch.randn(1, 3, 64, 64))] == [(1, 128, 4, 4)] * 2


def test_pruning_keeps_what_the_chosen_blocks_need() -> None:
    model, image = nano(), torch.randn(2, 3, 64, 64)
    wanted = model.forward_intermediates(image, [0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, -3]) == [0, 1]
    assert len(model.blocks) == 2
    torch.testing.assert_close(model.forward_intermediates(image, intermediates_only=True), wanted)
    assert model(image).shape == (2, 16, 128), "a pruned model has neither pooling nor head"
    again = nano()
    again.prune_intermediate_layers(2, prune_norm=True, prune_head=False)
    assert again(image).shape == (2, 7)
    assert isinstance(again.backbone.ln_out, nn.Identity)


def test_checkpointing_recomputes_and_changes_nothing() -> None:
    model, image = nano(), torch.randn(2, 3, 64, 64)
    calls: list[int] = []
    model.blocks[1].ln1.register_forward_pre_hook(lambda _m, _a: calls.append(1))

    def gradients(run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        run(image).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    runs = (model, lambda x: model.forward_intermediates(x, 1, intermediates_only=True)[0])
    plain = [gradients(run) for run in runs]
    assert len(calls) == 2
    model.set_grad_checkpointing()
    torch.testing.assert_close([gradients(run) for run in runs], plain)
    assert len(calls) == 6


# ------------------------------------------------------------------------------------------------------- image size


def test_a_dynamic_model_equals_a_static_one_of_that_size() -> None:
    dynamic, image = nano(), torch.randn(2, 3, 48, 80)
    static = nano(img_size=(48, 80), dynamic_img_size=False)
    static.load_state_dict(checkpoint_filter_fn(dynamic.state_dict(), static))
    torch.testing.assert_close(static(image), dynamic(image))
    with pytest.raises(AssertionError, match="height"):
        static(torch.randn(1, 3, 64, 64))
    with pytest.raises(AssertionError, match="divisible"):
        nano(dynamic_img_pad=False)(torch.randn(1, 3, 50, 64))


def test_set_input_size() -> None:
    model, image = nano(), torch.randn(1, 3, 96, 32)
    wanted = model(image)
    model.set_input_size((96, 32))
    assert model.grid_size == (6, 2)
    assert model.pos_embed.shape == (1, 12, 128)
    torch.testing.assert_close(model(image), wanted)
    model.set_input_size(img_size=64, patch_size=8)
    assert model.patch_embed.proj.weight.shape == (128, 3, 8, 8)
    assert model.feature_info[0]["reduction"] == 8
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 64, 128)


# ------------------------------------------------------------------------------------------------ parameter groups


def test_layer_decay_has_a_layer_for_every_parameter() -> None:
    model = nano()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        block = re.match(r"backbone\.blocks\.(\d+)", name)
        # As in timm's ViT: stem, blocks (the last with the final norm), head.
        wanted = (
            int(block[1]) + 1 if block else {"patch_embed": 0, "pos_embed": 0, "backbone": 4}.get(name.split(".")[0], 5)
        )
        assert layer == wanted, name
    vit = timm.create_model("vit_tiny_patch16_224", depth=4, device="meta")
    assert set(layers.values()) == set(group_parameters(vit, vit.group_matcher(), reverse=True).values())


def test_layer_decay_groups_decay_the_matrices_alone() -> None:
    model = nano()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    scales = sorted({group["lr_scale"] for group in groups})
    assert len(scales) == 6
    assert all(b == 2 * a for a, b in pairwise(scales))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    ours = {
        names[id(p)] for group in parameter_groups(model, 1.0, 1.0) if group["weight_decay"] for p in group["params"]
    }
    assert decayed == ours


@pytest.mark.parametrize("options", [{"opt": "adamw", "layer_decay": 0.75}, {"opt": "muon"}, {"opt": "lamb"}])
def test_optimisers_of_timm_take_the_model(options: dict[str, Any]) -> None:
    model, image = nano().train(), torch.randn(4, 3, 64, 64)
    optimizer = create_optimizer_v2(model, lr=1e-3, weight_decay=0.05, **options)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), torch.tensor([0, 2, 4, 6]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def stored(tmp_path: Path) -> tuple[VRWKV7, dict[str, Any]]:
    """A model of ten classes at 64 pixels, and the overlay that names its file."""
    model = nano(num_classes=10)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model, {"file": str(tmp_path / "weights.safetensors"), "num_classes": 10, "input_size": (3, 64, 64)}


def load(overlay: dict[str, Any], **options: Any) -> VRWKV7:
    model = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay, depth=4, **options).eval()
    assert isinstance(model, VRWKV7)
    return model


def test_pretrained_weights_of_the_same_shape(stored: tuple[VRWKV7, dict[str, Any]]) -> None:
    model, overlay = stored
    image = torch.randn(2, 3, 64, 64)
    again = load(overlay)
    assert (again.num_classes, again.grid_size) == (10, (4, 4))
    torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


def test_pretrained_weights_for_other_classes_channels_and_size(stored: tuple[VRWKV7, dict[str, Any]]) -> None:
    model, overlay = stored
    other = load(overlay, num_classes=3, in_chans=1, img_size=(32, 96))
    ours, theirs = other.state_dict(), model.state_dict()
    assert ours["head.weight"].shape == (3, 128)
    torch.testing.assert_close(ours["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"].sum(1, keepdim=True))
    position = resample_abs_pos_embed(theirs["pos_embed"], new_size=[2, 6], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(ours["pos_embed"], position)
    for name in theirs:
        if name.startswith("backbone."):
            assert torch.equal(ours[name], theirs[name]), name
    features = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay, depth=4, features_only=True)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(features(image), model.forward_intermediates(image, 3, intermediates_only=True))


def test_pretrained_weights_for_another_patch_size(stored: tuple[VRWKV7, dict[str, Any]]) -> None:
    """With patches half as large, an image half as large looks nearly the same (FlexiViT's resampling)."""
    model, overlay = stored
    half = load(overlay, patch_size=8, img_size=32)
    image = F.interpolate(torch.randn(2, 3, 8, 8), size=(32, 32), mode="bicubic", align_corners=False)
    double = F.interpolate(image, size=(64, 64), mode="bicubic", align_corners=False)
    tokens = [m.patch_embed(x).flatten() for m, x in ((half, image), (model, double))]
    assert torch.corrcoef(torch.stack(tokens))[0, 1] > 0.95


def test_weights_of_a_rectangle_need_their_size(tmp_path: Path) -> None:
    model = nano(img_size=(32, 80))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 7}
    with pytest.raises(ValueError, match="10 tokens"):
        load(overlay)
    image = torch.randn(1, 3, 64, 64)
    again = load({**overlay, "input_size": (3, 32, 80)}, img_size=64)
    model.set_input_size(64)
    torch.testing.assert_close(again(image), model(image))


def test_a_folder_of_the_app_opens_in_timm(tmp_path: Path) -> None:
    data = {
        "img_size": [64, 64], "in_chans": 3, "num_classes": 2, "class_names": ["a", "b"],
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    options = {"name": "vrwkv7", "embed_dim": 128, "depth": 4, "head_dim": 32, "scan": "split2"}
    pipe = VisionPipeline(shake(build_vision_model(options, data)), {"app": "vision", "model": options, "data": data})
    pipe.save_pretrained(tmp_path)
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 2, "input_size": (3, 64, 64)}
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(load(overlay, scan="split2")(image), pipe.model(image), rtol=0, atol=0)


def test_saving_for_the_hub_and_reading_it_back(tmp_path: Path) -> None:
    model, image = nano(scan="split2"), torch.randn(1, 3, 64, 64)
    arguments = {"img_size": 64, "depth": 4, "scan": "split2"}
    save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)
    third = nano(scan="split2")
    load_checkpoint(third, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(third(image), model(image), rtol=0, atol=0)


def test_names_of_the_parameters_are_those_of_saved_files() -> None:
    """Folders written by earlier releases hold these names."""
    names = set(nano(depth=2).state_dict())
    assert {n for n in names if not n.startswith("backbone.blocks.")} == {
        "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "backbone.ln_out.weight", "backbone.ln_out.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert {n.removeprefix("backbone.blocks.0.") for n in names if n.startswith("backbone.blocks.0.")} == {
        *(f"att.{x}{i}" for x in "wag" for i in range(3) if (x, i) != ("g", 0)), *(f"att.x_{x}" for x in "rwkvag"),
        *(f"att.{x}.weight" for x in ("receptance", "key", "value", "output", "ln_x")), "att.ln_x.bias",
        "att.k_k", "att.k_a", "att.r_k", "ffn.x_k", "ffn.key.weight", "ffn.value.weight",
        *(f"ln{i}.{x}" for i in (1, 2) for x in ("weight", "bias")),
    }  # fmt: skip
