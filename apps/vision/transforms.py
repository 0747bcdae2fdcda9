"""From a picture to the model's input: one fixed path for evaluation, several augmentations for training.

All of it works on the image tensors of :mod:`apps.vision.images`, float32 (C, H, W) in [0, 1], except timm's
policies (:mod:`apps.vision.augment`), which want PIL images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from apps.vision import augment
from apps.vision.images import to_image_tensor
from core.errors import UserError

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class InputSpec:
    """What a model's input looks like; plain values, saved with the weights.

    Attributes:
        img_size: (height, width) in pixels.
        in_chans: channels, 1 for grey and 3 for colour.
        mean, std: per channel, of images in [0, 1].
        crop_pct: evaluation resizes to img_size / crop_pct and cuts out the centre (timm's meaning).
        interpolation: "bicubic", "bilinear" or "nearest".
    """

    img_size: tuple[int, int]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    @classmethod
    def create(
        cls,
        img_size: int | tuple[int, int] | list[int],
        in_chans: int,
        mean: list[float] | tuple[float, ...],
        std: list[float] | tuple[float, ...],
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
    ) -> InputSpec:
        """Check and normalise what came from a config file."""
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"img_size is {img_size}; a number of pixels or [height, width] was expected.")
        if not len(mean) == len(std) == in_chans:
            raise UserError(f"mean has {len(mean)} values, std {len(std)}; the images have {in_chans} channel(s).")
        if not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct is {crop_pct}; a number in (0, 1] was expected.")
        if interpolation not in ("bicubic", "bilinear", "nearest"):
            raise UserError(f"interpolation is '{interpolation}'; expected bicubic, bilinear or nearest.")
        return cls((size[0], size[1]), in_chans, tuple(mean), tuple(std), crop_pct, interpolation)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> InputSpec:
        """The spec inside a data module's ``describe()`` or a saved config; other keys are ignored."""
        known = {key: facts[key] for key in cls.__dataclass_fields__ if key in facts}
        return cls.create(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as JSON and checkpoints want them."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


class EvalTransform:
    """A picture of any kind and size -> normalised tensor (in_chans, height, width), without randomness."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self.mode = InterpolationMode(spec.interpolation)

    def __call__(self, picture: Any) -> Tensor:
        return normalise(self.crop(to_image_tensor(picture, self.spec.in_chans)), self.spec)

    def crop(self, image: Tensor) -> Tensor:
        """Resize the image to cover the (scaled) input size, then cut out its centre."""
        height, width = self.spec.img_size
        if tuple(image.shape[-2:]) == (height, width) and self.spec.crop_pct == 1.0:
            return image
        scale = max(height / image.shape[-2], width / image.shape[-1]) / self.spec.crop_pct
        target = [max(height, round(image.shape[-2] * scale)), max(width, round(image.shape[-1] * scale))]
        image = F.resize(image, target, interpolation=self.mode, antialias=True).clamp(0.0, 1.0)
        return F.center_crop(image, [height, width])


def normalise(image: Tensor, spec: InputSpec) -> Tensor:
    """(image - mean) / std per channel."""
    mean = image.new_tensor(spec.mean)[:, None, None]
    return (image - mean) / image.new_tensor(spec.std)[:, None, None]


def denormalise(image: Tensor, spec: InputSpec) -> Tensor:
    """The inverse of :func:`normalise` for (..., C, H, W), clamped to [0, 1]: what a person can look at."""
    mean = image.new_tensor(spec.mean)[:, None, None]
    return (image * image.new_tensor(spec.std)[:, None, None] + mean).clamp(0.0, 1.0)


def train_transform(options: dict[str, Any], spec: InputSpec) -> Transform:
    """The training transform named by ``options["kind"]``.

    Kinds:
        none: the evaluation path.
        affine: small turns, zooms and shifts (``degrees``, ``translate``, ``scale``, ``shear``): characters.
        crop: shift by up to ``padding`` pixels, flip, a policy and erasing if asked for: CIFAR-like sets.
        resize_crop: RandomResizedCrop, flips, a policy, erasing: timm's ImageNet recipe.

    ``auto_augment`` names the policy and ``re_prob``, ``re_mode``, ``re_count`` the erasing, see
    :mod:`apps.vision.augment`.

    Raises:
        UserError: unknown kind or option.
    """
    options = dict(options)
    kind = options.pop("kind", "none")
    if kind not in _KINDS:
        raise UserError(f"data.augment.kind is '{kind}'; expected one of {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](spec, **options)
    except TypeError as error:
        raise UserError(f"data.augment (kind {kind}) has a wrong option: {error}.") from None


def _none(spec: InputSpec) -> Transform:
    return EvalTransform(spec)


def _affine(
    spec: InputSpec, *, degrees: float = 0.0, translate: float = 0.0, scale: float = 0.0, shear: float = 0.0
) -> Transform:
    path = EvalTransform(spec)
    affine = v2.RandomAffine(
        (-degrees, degrees),
        translate=(translate, translate),
        scale=(1 - scale, 1 + scale),
        shear=shear or None,
        interpolation=InterpolationMode.BILINEAR,
    )
    return lambda picture: normalise(affine(path.crop(to_image_tensor(picture, spec.in_chans))), spec)


def _crop(
    spec: InputSpec,
    *,
    padding: int = 4,
    hflip: float = 0.5,
    auto_augment: str | None = None,
    re_prob: float = 0.0,
    re_mode: str = "pixel",
    re_count: int = 1,
) -> Transform:
    path = EvalTransform(spec)
    geometry = v2.Compose([v2.RandomCrop(list(spec.img_size), padding=padding or None), v2.RandomHorizontalFlip(hflip)])
    policy = augment.auto_augment(auto_augment, spec.img_size, spec.mean)
    erase = augment.erasing(re_prob, re_mode, re_count)

    def apply(picture: Any) -> Tensor:
        image = path.crop(to_image_tensor(policy(picture), spec.in_chans))
        return erase(normalise(geometry(image), spec))

    return apply


def _resize_crop(
    spec: InputSpec,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    color_jitter: float = 0.0,
    re_prob: float = 0.25,
    re_mode: str = "pixel",
    re_count: int = 1,
) -> Transform:
    mode = InterpolationMode(spec.interpolation)
    geometry = v2.Compose(
        [
            v2.RandomResizedCrop(
                list(spec.img_size), scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]), interpolation=mode
            ),
            v2.RandomHorizontalFlip(hflip),
            v2.RandomVerticalFlip(vflip),
        ]
    )
    jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else v2.Identity()
    policy = augment.auto_augment(auto_augment, spec.img_size, spec.mean)
    erase = augment.erasing(re_prob, re_mode, re_count)

    def apply(picture: Any) -> Tensor:
        # Crop first: RandAugment on a whole photo would cost far more than on the crop.
        if isinstance(picture, Image.Image):
            image = geometry(picture)
        else:
            # Bicubic resampling shoots over the range of a float image.
            image = geometry(to_image_tensor(picture, spec.in_chans)).clamp(0.0, 1.0)
        image = to_image_tensor(policy(image), spec.in_chans)
        return erase(normalise(jitter(image).clamp(0.0, 1.0), spec))

    return apply


_KINDS: dict[str, Callable[..., Transform]] = {
    "none": _none,
    "affine": _affine,
    "crop": _crop,
    "resize_crop": _resize_crop,
}
