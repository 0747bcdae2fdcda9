"""timm's policies and erasing: they change pictures, the same way for the same seed, grey ones and colour ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from apps.vision.augment import auto_augment, erasing
from apps.vision.data import FakeImages
from core.errors import UserError
from core.train.seeds import seed_all

POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m9-n3", "original", "originalr-mstd0.5", "v0", "v0r", "augmix-m3-w2", "3a"]
PICTURE = np.random.RandomState(0).randint(0, 256, (24, 20, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy: str, in_chans: int) -> None:
    apply = auto_augment(policy, (24, 20), (0.5,) * in_chans)
    mode = "L" if in_chans == 1 else "RGB"
    picture = Image.fromarray(PICTURE).convert(mode)

    def drawn(seed: int) -> bytes:
        seed_all(seed)
        out = apply(picture)
        assert (out.mode, out.size) == (mode, picture.size)
        return out.tobytes()

    outs = [drawn(seed) for seed in range(25)]
    assert outs == [drawn(seed) for seed in range(25)]
    assert len(set(outs)) > 2
    assert apply(torch.rand(in_chans, 9, 8)).size == (8, 9)


@pytest.mark.parametrize("policy", ["nonsense", "rand-x3", "original-w2", "augmix-q3", "4a"])
def test_unknown_policies_are_explained(policy: str) -> None:
    with pytest.raises(UserError, match="auto_augment"):
        auto_augment(policy, (8, 8), (0.5,))


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing(mode: str) -> None:
    image = torch.full((3, 16, 16), 7.0)
    seed_all(1)
    out = erasing(1.0, mode, count=2)(image)
    gone = (out != 7).any(0)
    assert torch.equal(image, torch.full((3, 16, 16), 7.0))  # the data set's own memory stays whole
    assert 0.01 < gone.double().mean() < 0.5
    colours = out[:, gone].unique(dim=1).shape[1]
    assert {"pixel": colours > 4, "rand": colours <= 2, "const": colours == 1}[mode]
    assert torch.equal(erasing(0.0)(image), image)


@pytest.mark.parametrize(
    "options", [{"probability": 2.0}, {"probability": 0.5, "mode": "x"}, {"probability": 1.0, "count": 0}]
)
def test_wrong_erasing_is_explained(options: dict) -> None:
    with pytest.raises(UserError, match="re_"):
        erasing(**options)


@pytest.mark.parametrize("policy", ["augmix-m3-w2", "original-mstd0.5"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(policy: str) -> None:
    augment = {"kind": "crop", "auto_augment": policy, "re_prob": 0.5}

    def epoch(number: int, workers: int, seed: int = 0) -> dict[int, torch.Tensor]:
        """Pictures of an epoch by their place in the data set, in whatever order they came."""
        data = FakeImages(length=12, img_size=16, batch_size=4, num_workers=workers, seed=seed, augment=augment)
        data.setup()
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
        keys = [key for batch in loader.batch_sampler for key in batch]  # type: ignore[union-attr]
        loader.batch_sampler.seek(number, 0)  # type: ignore[union-attr]
        images = torch.cat([images for images, _ in loader])
        return {index: image for (_, index), image in zip(keys, images, strict=True)}

    first: Callable[[int], torch.Tensor] = epoch(1, 0).__getitem__
    assert all(torch.equal(first(i), image) for i, image in epoch(1, 2).items())
    assert not all(torch.equal(first(i), image) for i, image in epoch(2, 0).items())
    assert not all(torch.equal(first(i), image) for i, image in epoch(1, 0, seed=1).items())
