"""timm's augmentations on one picture: RandAugment, AutoAugment, AugMix, 3-Augment, and random erasing.

All draw from the global generators of Python, NumPy and torch, which the loader seeds for each picture from (seed,
epoch, index).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image
from timm.data.auto_augment import (
    AugmentOp,
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from apps.vision.images import to_image_tensor
from core.errors import UserError

ERASING = ("pixel", "rand", "const")


def auto_augment(policy: str | None, img_size: tuple[int, int], mean: tuple[float, ...]) -> Callable[[Any], Any]:
    """The policy in timm's notation, as a function of a picture of any kind.

    Args:
        policy: "rand-m9-mstd0.5-inc1" (RandAugment: magnitude, its noise, the increasing set), "original" or "v0"
            (AutoAugment, with -mstd0.5 for noise), "augmix-m3-w3", "3a" (DeiT III's 3-Augment); None or "": nothing.
        img_size: (height, width), which some policies measure shifts by.
        mean: of the pictures' channels, for pixels from outside the picture; its length tells grey from colour.

    Returns:
        Picture -> 8-bit PIL image, since that is what timm's operations want; or the picture as it is.

    Raises:
        UserError: no such policy, or an option that it does not have.
    """
    if not policy:
        return lambda picture: picture
    channels = len(mean)
    transform = _transform_of(policy, img_size, mean)

    def apply(picture: Any) -> Image.Image:
        if not isinstance(picture, Image.Image):
            picture = F.to_pil_image(to_image_tensor(picture, channels))
        augmented = transform(picture.convert("L" if channels == 1 else "RGB"))
        return augmented.convert("L") if channels == 1 else augmented

    return apply


def _transform_of(policy: str, img_size: tuple[int, int], mean: tuple[float, ...]) -> Any:
    fill = tuple(min(255, round(255 * value)) for value in mean)
    options: dict[str, Any] = {"img_mean": fill if len(mean) > 1 else fill[0]}
    if policy.startswith("augmix"):
        options["translate_pct"] = 0.3
        make = augment_and_mix_transform
    else:
        options["translate_const"] = int(0.45 * min(img_size))
        make = rand_augment_transform if policy.startswith("rand") else auto_augment_transform
    try:
        transform = make(policy, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"data.augment.auto_augment is '{policy}', which timm cannot read; expected such as rand-m9-mstd0.5-inc1, "
            "original-mstd0.5, v0, augmix-m3-w3 or 3a."
        ) from error
    for op in _operations(transform):
        if op.name.startswith("Posterize"):
            op.level_fn = _keeping_a_bit(op.level_fn)
    return transform


def _operations(transform: Any) -> Iterable[AugmentOp]:
    """Every operation of one of timm's transforms, whichever way that keeps them."""
    if hasattr(transform, "ops"):
        return transform.ops
    return (op for branch in transform.policy for op in branch)


def _keeping_a_bit(level_of: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    """timm posterises down to 0 bits at its highest magnitudes, which Pillow 13 refuses; 1 is the next best."""
    return lambda *args: (max(1, level_of(*args)[0]),)


def erasing(probability: float, mode: str = "pixel", count: int = 1) -> Callable[[Tensor], Tensor]:
    """timm's random erasing of up to ``count`` rectangles, for pictures that are normalised already.

    Args:
        probability: share of the pictures that lose something; 0: none.
        mode: what comes instead: normal noise by "pixel", one random colour ("rand"), the mean ("const").
        count: most rectangles per picture; their areas are divided by their number.
    """
    if not 0 <= probability <= 1:
        raise UserError(f"data.augment.re_prob is {probability}; a share from 0 to 1 was expected.")
    if mode not in ERASING:
        raise UserError(f"data.augment.re_mode is '{mode}'; expected one of {', '.join(ERASING)}.")
    if count < 1:
        raise UserError(f"data.augment.re_count is {count}; at least 1 was expected.")
    if not probability:
        return lambda image: image
    erase = RandomErasing(probability, mode=mode, max_count=count, device="cpu")
    # timm erases in place, and a picture may be the data set's own memory.
    return lambda image: erase(image.clone())
