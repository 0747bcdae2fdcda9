"""Mixup and CutMix, by timm's hand: pictures of one batch mixed with one another, and so their targets."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError

MODES = ("batch", "pair", "elem")
LOSSES = ("ce", "bce")


class BatchMix:
    """timm's ``Mixup`` for batches of any size.

    What it draws comes from NumPy's global generator, which the harness seeds from (seed, epoch, batch, rank) before
    every training batch: mixing is a function of these, and a resumed run mixes as an unbroken one.

    Args:
        num_classes: C.
        mixup, cutmix: alpha of the Beta distribution that the shares are drawn from; 0 switches one off.
        switch: with both, how often it is CutMix.
        mode: one share for the whole "batch", for each "pair" of pictures, or for each one ("elem").
        minmax: CutMix with edges between these two shares of the picture's, instead of an area drawn by alpha.
        smoothing: share of the target that is spread over all classes.

    Raises:
        UserError: nothing to mix by, or a value out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch: float = 0.5,
        mode: str = "batch",
        minmax: list[float] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"task.mix_mode is '{mode}'; expected one of {', '.join(MODES)}.")
        if min(mixup, cutmix) < 0 or not 0 <= switch <= 1:
            raise UserError(
                f"task.mixup={mixup:g} and task.cutmix={cutmix:g} must not be negative, and task.mix_switch={switch:g} "
                "is a share: 0 to 1."
            )
        if minmax is not None and not (len(minmax) == 2 and 0 < minmax[0] < minmax[1] <= 1):
            raise UserError(
                f"task.cutmix_minmax is {minmax}; two rising shares of the edge such as [0.2, 0.8], or null."
            )
        if not (mixup or cutmix or minmax):
            raise UserError("There is nothing to mix by: task.mixup, task.cutmix and task.cutmix_minmax are all off.")
        self.num_classes, self.smoothing = num_classes, smoothing
        self.mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            cutmix_minmax=minmax,
            switch_prob=switch,
            mode=mode,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C', H, W) and classes (B,) -> new images, and targets (B, C) whose rows add up to 1.

        timm mixes pictures in pairs, the first with the last; an odd batch's last one is left as it is.
        """
        even = len(images) // 2 * 2
        mixed, soft = self.mixup(images[:even].clone(), targets[:even]) if even else (images[:0], targets[:0])
        if even == len(images):
            return mixed, soft
        rest = mixup_target(targets[even:], self.num_classes, 1.0, self.smoothing).to(images.device)
        return torch.cat([mixed, images[even:]]), torch.cat([soft, rest]) if even else rest


class TrainingLoss(nn.Module):
    """The training loss for classes or soft targets.

    Args:
        kind: "ce", cross-entropy; "bce", binary cross-entropy of each class by itself (timm's; arXiv 2110.00476).
        smoothing: label smoothing, for targets that are classes; soft ones come smoothed.

    Shapes:
        logits (B, C), targets (B,) int64 or (B, C) float -> a number.
    """

    def __init__(self, kind: str = "ce", smoothing: float = 0.0) -> None:
        super().__init__()
        if kind not in LOSSES:
            raise UserError(f"task.loss is '{kind}'; expected ce or bce.")
        if not 0 <= smoothing < 1:
            raise UserError(f"task.label_smoothing is {smoothing}; a number in [0, 1) was expected.")
        self.smoothing = smoothing
        self.soft = SoftTargetCrossEntropy() if kind == "ce" else None
        self.binary = BinaryCrossEntropy(smoothing=smoothing) if kind == "bce" else None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.binary is not None:
            return self.binary(logits, targets)
        if targets.ndim == 2 and self.soft is not None:
            return self.soft(logits, targets)
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)


def mixing_of(num_classes: int, smoothing: float, options: dict[str, Any]) -> BatchMix | None:
    """The mix that options ask for; None if they ask for none."""
    if not any(options.get(key) for key in ("mixup", "cutmix", "minmax")):
        return None
    return BatchMix(num_classes, smoothing=smoothing, **options)
