"""Mixing: what timm promises, batches of any size, the same mix for the same place in the run; and the losses."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from apps.vision.mixing import BatchMix, TrainingLoss, mixing_of
from core.errors import UserError
from core.train.seeds import derive_seed, seed_all


def one_colour_each(count: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture i is filled with the number i + 1; its class is i."""
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 1, size, size).clone()
    return images, torch.arange(count)


def test_mixup_mixes_pictures_and_targets_alike() -> None:
    images, targets = one_colour_each(4)
    seed_all(3)
    mixed, soft = BatchMix(4, mixup=0.8)(images, targets)
    share = soft[0, 0]
    assert 0 < share < 1
    assert torch.equal(images, one_colour_each(4)[0])  # the batch itself is left alone
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    torch.testing.assert_close(soft, share * torch.eye(4) + (1 - share) * torch.eye(4).flip(0))


def test_cutmix_s_targets_are_the_areas_that_are_seen() -> None:
    images, targets = one_colour_each(6, 16)
    for seed in range(5):
        seed_all(seed)
        mixed, soft = BatchMix(6, cutmix=1.0, smoothing=0.0)(images, targets)
        own = (mixed == images).flatten(1).double().mean(1)
        torch.testing.assert_close(soft.gather(1, targets[:, None])[:, 0].double(), own)
        torch.testing.assert_close(soft.sum(1), torch.ones(6))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_batches_of_any_size(mode: str, count: int) -> None:
    images, targets = one_colour_each(count)
    seed_all(0)
    mixed, soft = BatchMix(7, mixup=0.8, cutmix=1.0, mode=mode, smoothing=0.1)(images, targets)
    assert mixed.shape == images.shape
    assert soft.shape == (count, 7)
    torch.testing.assert_close(soft.sum(1), torch.ones(count))
    if count % 2:
        assert torch.equal(mixed[-1], images[-1])
        torch.testing.assert_close(soft[-1], F.one_hot(targets[-1], 7) * 0.9 + 0.1 / 7)


def test_the_mix_is_a_function_of_the_place_in_the_run() -> None:
    images, targets = one_colour_each(4)
    mix = BatchMix(4, mixup=0.8, cutmix=1.0)

    def at(epoch: int, batch: int, before: int) -> torch.Tensor:
        for _ in range(before):  # what was drawn before must not matter
            torch.rand(()), random.random()
        seed_all(derive_seed(0, "batch", epoch, batch, 0))
        return mix(images, targets)[0]

    assert torch.equal(at(1, 2, before=0), at(1, 2, before=7))
    assert len({tuple(at(e, b, 0).flatten().tolist()) for e in range(3) for b in range(3)}) > 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mixup": 0.5, "mode": "row"}, "mix_mode"),
        ({"mixup": -1.0}, "negative"),
        ({"minmax": [0.8, 0.2]}, "cutmix_minmax"),
        ({}, "nothing to mix"),
    ],
)
def test_wrong_mixes_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BatchMix(4, **options)
    assert mixing_of(4, 0.1, {"mixup": 0.0, "cutmix": 0.0, "minmax": None}) is None


def test_losses_are_what_they_are_called() -> None:
    logits, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    soft = torch.rand(5, 3, dtype=torch.float64).softmax(-1)
    hard = (F.one_hot(targets, 3) * 0.7 + 0.1).double()
    torch.testing.assert_close(TrainingLoss("ce", 0.3)(logits, targets), -(hard * logits.log_softmax(-1)).sum(1).mean())
    torch.testing.assert_close(TrainingLoss("ce", 0.3)(logits, soft), -(soft * logits.log_softmax(-1)).sum(1).mean())
    binary = -(soft * logits.sigmoid().log() + (1 - soft) * (-logits).sigmoid().log()).mean()
    torch.testing.assert_close(TrainingLoss("bce", 0.3)(logits, soft), binary)
    for kind, smoothing, word in (("mse", 0.0, "loss"), ("ce", 1.0, "label_smoothing")):
        with pytest.raises(UserError, match=word):
            TrainingLoss(kind, smoothing)
