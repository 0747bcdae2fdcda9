"""The image sets of this room: digits, CIFAR-10, any folder of class folders, and made-up ones for tests.

Each knows its classes and its input (size, channels, mean, std) and says so in ``describe()``; the task
builds the model from that. Loaders, samplers and per-item seeds come from :class:`core.train.data.DataModule`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from apps.vision.datasets import ImageSet, cache_folder, class_folders, fill_once, read_class_folders, unpack_once
from apps.vision.splits import stratified_split
from apps.vision.transforms import EvalTransform, InputSpec, train_transform
from core.errors import UserError
from core.train.data import DataModule
from core.train.sampling import RankBatches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionData(DataModule):
    """What every image set here shares: the input spec, the two transforms, the facts.

    Args:
        spec: size, channels and normalisation of the model's input.
        augment: training augmentation, see :func:`apps.vision.transforms.train_transform`; None: none.
        split_seed: names the split of validation from training data; independent of the run's seed, so that
            runs with different seeds see the same split.
        batch_size, num_workers, seed: see :class:`core.train.data.DataModule`.
    """

    title = "images"

    def __init__(
        self,
        spec: InputSpec,
        *,
        augment: dict[str, Any] | None = None,
        split_seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, **loader)
        self.spec = spec
        self.split_seed = split_seed
        self.train_transform = train_transform(dict(augment or {}), spec)
        self.eval_transform = EvalTransform(spec)
        self.class_names: list[str] = []

    def describe(self) -> dict[str, Any]:
        """Facts known after ``setup``: classes, input spec, sizes of the splits; plain values only."""
        return {
            "dataset": self.title,
            "class_names": list(self.class_names),
            "num_classes": len(self.class_names),
            **self.spec.to_dict(),
            "sizes": {"train": len(self.train_set), "val": len(self.val_set), "test": len(self.test_set)},
            "split_seed": self.split_seed,
        }

    def evaluation_loader(self, split: str, img_size: tuple[int, int] | None = None) -> Any:
        """Batches of "val" or "test" in order, resized to another (height, width) if one is given.

        Larger images come in smaller batches, so that a batch has as many pixels as at the usual size.
        """
        images = getattr(self, f"{split}_set")
        size = self.eval_batch_size
        if img_size is not None:
            images = replace(images, transform=EvalTransform(replace(self.spec, img_size=img_size)))
            height, width = self.spec.img_size
            size = min(size, max(1, size * height * width // (img_size[0] * img_size[1])))
        return self._loader(images, RankBatches(len(images), size))

    def _hold_out(self, images: ImageSet, fraction: float) -> None:
        """Set train_set and val_set by a stratified split of one set of training pictures."""
        if not 0 < fraction < 1:
            raise UserError(f"data.val_fraction is {fraction}; a number between 0 and 1 was expected.")
        train, val = stratified_split(images.targets, (1 - fraction, fraction), self.split_seed)
        if not train or not val:
            raise UserError(
                f"{len(images)} training pictures cannot be split into training and validation "
                f"with data.val_fraction={fraction}; add pictures or a 'val' folder."
            )
        self.train_set = images.select(train, self.train_transform)
        self.val_set = images.select(val, self.eval_transform)


class Digits(VisionData):
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, embedded in the package.

    Split 70 / 10 / 20 % into 1,258 training, 180 validation and 359 test images, stratified, by
    ``split_seed`` 0. (UCI "Optical Recognition of Handwritten Digits", its test part.)
    """

    title = "digits"

    def __init__(
        self,
        *,
        img_size: int | list[int] = 8,
        mean: float = 0.305,
        std: float = 0.376,
        interpolation: str = "bicubic",
        **options: Any,
    ) -> None:
        super().__init__(InputSpec.create(img_size, 1, [mean], [std], 1.0, interpolation), **options)

    def setup(self, stage: str | None = None) -> None:
        """Load and split; cheap, so every stage gets all three sets."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError("The digits come with scikit-learn: pip install 'greylag[vision]'.") from None
        pixels, labels = load_digits(return_X_y=True)
        # 0..16 ink per pixel -> [0, 1], white on black.
        pictures = torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 16.0).view(-1, 1, 8, 8)
        targets = np.asarray(labels).tolist()
        self.class_names = [str(digit) for digit in range(10)]
        train, val, test = stratified_split(targets, (0.7, 0.1, 0.2), self.split_seed)
        images = ImageSet(list(pictures), targets, self.eval_transform)
        self.train_set = images.select(train, self.train_transform)
        self.val_set = images.select(val)
        self.test_set = images.select(test)


class CIFAR10(VisionData):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        root: a folder with ``train`` and ``test`` folders of class folders, or with ``train.tar.gz`` and
            ``test.tar.gz`` of the same; these are the re-compressed "CIFAR-10 (JPEG)". None: first
            ``$GREYLAG_SHARED/cifar10``, then torchvision's CIFAR-10 (downloaded, the original pixels).
        val_fraction: share of the training images held out for validation, stratified; the test images
            are never used for anything but the final test.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        val_fraction: float = 0.1,
        img_size: int | list[int] = 32,
        mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, ...] = (0.2470, 0.2435, 0.2616),
        interpolation: str = "bicubic",
        **options: Any,
    ) -> None:
        super().__init__(InputSpec.create(img_size, 3, mean, std, 1.0, interpolation), **options)
        self.folder = self._find(None if root is None else Path(root).expanduser())
        # The name to quote numbers under: the JPEG files are not bit-identical to CIFAR-10.
        self.title = "CIFAR-10" if self.folder is None else "CIFAR-10 (JPEG)"
        self.val_fraction = val_fraction

    def setup(self, stage: str | None = None) -> None:
        """Unpack or download if that was never done on this machine; list the pictures and split."""
        if self.folder is None:
            root = str(self._download())
            train, test = TorchvisionCIFAR10(root, train=True), TorchvisionCIFAR10(root, train=False)
            self.class_names = list(train.classes)
            images = ImageSet(list(train.data), list(train.targets), self.train_transform)
            self.test_set = ImageSet(list(test.data), list(test.targets), self.eval_transform)
        else:
            root = self._split_folder(self.folder, "train")
            self.class_names = class_folders(root)
            images = read_class_folders(root, self.train_transform)
            test_root = self._split_folder(self.folder, "test")
            self.test_set = read_class_folders(test_root, self.eval_transform, self.class_names)
        self._hold_out(images, self.val_fraction)

    @classmethod
    def _find(cls, root: Path | None) -> Path | None:
        """The folder that holds both splits, packed or not; None: torchvision's copy is used."""
        if root is not None:
            if not (cls._has_split(root, "") or cls._has_split(root, ".tar.gz")):
                raise UserError(
                    f"data.root='{root}' holds neither the folders train/ and test/ nor train.tar.gz and test.tar.gz."
                )
            return root
        if shared := os.environ.get("GREYLAG_SHARED"):
            folder = Path(shared).expanduser() / "cifar10"
            if cls._has_split(folder, "") or cls._has_split(folder, ".tar.gz"):
                return folder
        return None

    @staticmethod
    def _has_split(folder: Path, ending: str) -> bool:
        return all((folder / f"{split}{ending}").exists() for split in ("train", "test"))

    @staticmethod
    def _split_folder(folder: Path, split: str) -> Path:
        if (folder / split).is_dir():
            return folder / split
        return unpack_once(folder / f"{split}.tar.gz", cache_folder() / "cifar10-jpeg" / split)

    @staticmethod
    def _download() -> Path:
        target = cache_folder() / "cifar10"
        try:
            return fill_once(target, lambda folder: TorchvisionCIFAR10(str(folder), download=True))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded to '{target}' ({error}); "
                "give a copy on disk with data.root=<folder>."
            ) from error


class ImageFolder(VisionData):
    """Your own pictures: ``root/train/<class>/*.jpg``, and ``val`` and ``test`` folders of the same if any.

    Without a ``val`` folder, ``val_fraction`` of the training pictures are held out, stratified. Without a
    ``test`` folder the validation pictures are the test set too, and ``describe()`` says so.
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.1,
        img_size: int | list[int] = 224,
        in_chans: int = 3,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        **options: Any,
    ) -> None:
        super().__init__(InputSpec.create(img_size, in_chans, mean, std, crop_pct, interpolation), **options)
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction
        self.title = self.root.name

    def setup(self, stage: str | None = None) -> None:
        """List the files of each split; pictures are read when they are asked for."""
        if not self.root.is_dir():
            raise UserError(f"data.root='{self.root}' is no folder; expected one with train/<class>/<picture>.")
        if not (self.root / "train").is_dir():
            raise UserError(f"data.root='{self.root}' has no folder 'train'; expected train/<class>/<picture>.")
        train = read_class_folders(self.root / "train", self.train_transform)
        self.class_names = class_folders(self.root / "train")
        if (self.root / "val").is_dir():
            self.train_set = train
            self.val_set = read_class_folders(self.root / "val", self.eval_transform, self.class_names)
        else:
            self._hold_out(train, self.val_fraction)
        self.has_test = (self.root / "test").is_dir()
        self.test_set = (
            read_class_folders(self.root / "test", self.eval_transform, self.class_names)
            if self.has_test
            else self.val_set
        )

    def describe(self) -> dict[str, Any]:
        """As the base's, with ``test_split`` naming the pictures that the test numbers stand on."""
        return {**super().describe(), "test_split": "test" if self.has_test else "val"}


class FakeImages(VisionData):
    """Made-up pictures, stripes of one direction per class plus noise: for tests and dry runs."""

    title = "fake"

    def __init__(
        self,
        *,
        img_size: int | list[int] = 32,
        in_chans: int = 3,
        num_classes: int = 4,
        length: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(InputSpec.create(img_size, in_chans, [0.5] * in_chans, [0.25] * in_chans), **options)
        self.length = length
        self.class_names = [f"pattern-{i}" for i in range(num_classes)]

    def setup(self, stage: str | None = None) -> None:
        """Draw the three sets; the same every time for one ``split_seed``."""
        sizes = {"train": self.length, "val": max(1, self.length // 4), "test": max(1, self.length // 4)}
        train, val, test = (self._draw(number, size) for number, size in enumerate(sizes.values()))
        self.train_set = ImageSet(*train, self.train_transform)
        self.val_set = ImageSet(*val, self.eval_transform)
        self.test_set = ImageSet(*test, self.eval_transform)

    def _draw(self, number: int, size: int) -> tuple[list[torch.Tensor], list[int]]:
        generator = torch.Generator().manual_seed(1000 * self.split_seed + number)
        height, width = self.spec.img_size
        targets = [i % len(self.class_names) for i in range(size)]
        down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        pictures = []
        for target in targets:
            angle = torch.tensor(3.1416 * target / len(self.class_names))
            phase = 6.2832 * torch.rand(self.spec.in_chans, generator=generator)[:, None, None]
            stripes = torch.sin(12.0 * (down * angle.sin() + across * angle.cos()) + phase)
            noise = 0.1 * torch.randn(self.spec.in_chans, height, width, generator=generator)
            pictures.append((0.5 + 0.35 * stripes + noise).clamp(0.0, 1.0))
        return pictures, targets
