"""timm's classifiers as models of this room: the same as timm's own, from plain options, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from apps.vision import VisionPipeline, build_vision_model
from benchmarks.vision_training import picture_facts
from core.errors import UserError

OPTIONS = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = {"name": "timm", "architecture": "deit_tiny_patch16_224", "options": OPTIONS}
PICTURES = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))


def test_it_is_timms_own_model():
    torch.manual_seed(0)
    ours = build_vision_model(VIT, picture_facts()).eval()
    torch.manual_seed(0)
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10, **OPTIONS).eval()
    assert torch.equal(ours(PICTURES), theirs(PICTURES))
    assert theirs.patch_embed.num_patches == 64


def test_architectures_of_any_size_are_not_told_one():
    model = build_vision_model({"name": "timm", "architecture": "resnet10t"}, picture_facts(48, 7)).eval()
    assert model(PICTURES).shape == (2, 7)


def test_it_is_saved_and_opened_as_any_model(tmp_path: Path):
    model = build_vision_model(VIT, picture_facts()).eval()
    VisionPipeline(model, {"app": "vision", "model": VIT, "data": picture_facts()}).save_pretrained(tmp_path)
    opened = VisionPipeline.from_pretrained(tmp_path).model
    assert torch.equal(opened(PICTURES), model(PICTURES))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"architecture": "deit_tny_patch16_224"}, "did you mean 'deit_tiny_patch16_224'"),
        ({"architecture": "hf-hub:someone/something"}, "timm has no architecture 'hf-hub:someone/something'"),
        ({"options": {"embed_dm": 32}}, "does not take these options: {'embed_dm': 32}"),
        ({"options": {"pretrained": True}}, "'pretrained' is no option of an architecture"),
        ({"options": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' is no option of an architecture"),
        ({"options": {"pretrained_cfg_overlay": {"file": "evil.pth"}}}, "'pretrained_cfg_overlay' is no option"),
    ],
)
def test_what_timm_has_not_and_what_would_read_files_is_refused(changed, sentence):
    with pytest.raises(UserError) as refusal:
        build_vision_model({**VIT, **changed}, picture_facts())
    assert sentence in str(refusal.value)
