"""The Residual Attention Network: a pre-activation ResNet whose features are weighted by masks it computes itself.

Source: arXiv 1704.06904, section 3 and table 2. What the paper leaves open is as in the authors' networks
(``fwang91/residual-attention-network``, prototxt): the mask reads what the module's first unit puts out, each skip
between its two ways is a unit of its own, and its last two 1x1 convolutions are pre-activated, too. For 32-pixel images
the paper gives no widths; those here have the 1.9M parameters of its Attention-92 and the 0.8M that each further module
per stage adds up to its Attention-236.

``mask="rwkv7"`` is ours: a bidirectional RWKV-7 mixer over the flattened grid in place of the mask's way down and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.layers import Context, TimeMix

MASKS = ("conv", "rwkv7")


class Layout(NamedTuple):
    """What differs between large and small images."""

    stem: int
    """Channels of the first convolution."""
    stages: tuple[int, int, int]
    """Channels of the stages with attention modules; each halves the resolution but the first."""
    last: int
    """Channels of the last three units."""
    last_stride: int


LAYOUTS = {
    "imagenet": Layout(stem=64, stages=(256, 512, 1024), last=2048, last_stride=2),
    "cifar": Layout(stem=16, stages=(64, 128, 256), last=256, last_stride=1),
}


def _conv(inside: int, outside: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)


def _activated(channels: int, conv: nn.Conv2d) -> nn.Sequential:
    """Norm and ReLU before the convolution."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv)


class Unit(nn.Module):
    """Pre-activation bottleneck (arXiv 1603.05027): 1x1, 3x3 and 1x1 convolution beside a shortcut.

    Args:
        inside, outside: channels (B, inside, H, W) -> (B, outside, H / stride, W / stride).
        stride: of the 3x3 convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        middle = outside // 4
        self.first = nn.Sequential(nn.BatchNorm2d(inside), nn.ReLU(inplace=True))
        self.convs = nn.Sequential(
            _conv(inside, middle),
            _activated(middle, _conv(middle, middle, 3, stride)),
            _activated(middle, _conv(middle, outside)),
        )
        self.shortcut = _conv(inside, outside, 1, stride) if inside != outside or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inside, H, W), any range."""
        active = self.first(x)
        return self.convs(active) + (x if self.shortcut is None else self.shortcut(active))


def _units(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Unit(channels, channels) for _ in range(count)))


class BottomUpTopDown(nn.Module):
    """The mask branch's way: max pooling and units down, units and bilinear interpolation up, skips between.

    Args:
        channels: in and out.
        levels: how often the resolution is halved.
        units: r, the units between two poolings; twice as many at the bottom.
    """

    def __init__(self, channels: int, levels: int, units: int = 1) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.down = nn.ModuleList(_units(channels, units) for _ in range(levels))
        self.bottom = _units(channels, units)
        self.skip = nn.ModuleList(Unit(channels, channels) for _ in range(levels - 1))
        self.up = nn.ModuleList(_units(channels, units) for _ in range(levels - 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        passed = [x]
        for down in self.down:
            passed.append(down(self.pool(passed[-1])))
        y = self.bottom(passed[-1])
        for level in reversed(range(len(self.up))):
            y = self._grow(y, passed[level + 1]) + self.skip[level](passed[level + 1])
            y = self.up[level](y)
        return self._grow(y, x)

    @staticmethod
    def _grow(x: Tensor, like: Tensor) -> Tensor:
        # Corners aligned, as Caffe's interpolation has them.
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class ScanMask(nn.Module):
    """A bidirectional RWKV-7 mixer over the grid in raster order, beside a shortcut: every place sees all others.

    Args:
        channels: in and out.
        head_dim: channels of a head.
        layer_id, num_layers: which of the network's modules it belongs to, for RWKV-7's initialisation.
    """

    def __init__(self, channels: int, head_dim: int, layer_id: int, num_layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = TimeMix(
            channels,
            layer_id=layer_id,
            num_layers=num_layers,
            head_dim=head_dim,
            token_shift="quad",
            scan="bidirectional",
            value_residual=False,  # the modules are of several widths
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        y, *_ = self.mixer(self.norm(tokens), None, Context(grid=grid, keep_state=False))
        return x + y.transpose(1, 2).unflatten(2, grid)


class AttentionModule(nn.Module):
    """Units, then (1 + M(x)) T(x) of a trunk T and a soft mask M in [0, 1], then units (p = 1, t = 2, r = 1).

    Args:
        channels: in and out, (B, C, H, W).
        way: what the mask sees its surroundings by, (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, way: nn.Module) -> None:
        super().__init__()
        self.before = _units(channels, 1)
        self.trunk = _units(channels, 2)
        self.way = way
        self.weigh = nn.Sequential(
            _activated(channels, _conv(channels, channels)),
            _activated(channels, _conv(channels, channels)),
            nn.Sigmoid(),
        )
        self.after = _units(channels, 1)

    def mask(self, x: Tensor) -> Tensor:
        """The soft mask of the trunk's input, both (B, C, H, W)."""
        return self.weigh(self.way(x))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        x = self.before(x)
        trunk = self.trunk(x)
        return self.after(torch.addcmul(trunk, self.mask(x), trunk))


class ResidualAttention(nn.Module):
    """Residual Attention Network, an image classifier for images of any height and width.

    Attention-56 has one module in each stage; Attention-92 has 1, 2, 3 for large images and 2, 2, 2 for small ones.
    In general the trunk is 20 + 12 x modules convolutions deep.

    Args:
        img_size: accepted as every model's, not used: the network takes any size.
        in_chans: image channels.
        num_classes: 0 leaves the head out.
        modules: attention modules in each of the three stages.
        layout: "imagenet", or "cifar" for images of about 32 pixels: a smaller stem, quarter widths.
        mask: "conv" (bottom-up top-down, the paper's) or "rwkv7".
        head_dim: channels of a head in masks of RWKV-7.
        drop_rate: dropout before the head.

    Shapes:
        images (B, in_chans, H, W) -> features (B, num_features, H', W') -> logits (B, num_classes).

    Raises:
        ValueError: an unknown layout or mask, a number of stages other than three.
    """

    title = "Residual Attention Network"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        modules: Sequence[int] = (1, 1, 1),
        layout: str = "imagenet",
        mask: str = "conv",
        head_dim: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        del img_size
        if layout not in LAYOUTS:
            raise ValueError(f"layout is '{layout}'; expected one of {', '.join(LAYOUTS)}.")
        if mask not in MASKS:
            raise ValueError(f"mask is '{mask}'; expected one of {', '.join(MASKS)}.")
        if len(modules) != 3 or min(modules) < 0:
            raise ValueError(f"modules is {list(modules)}; expected three numbers, the modules of each stage.")
        sizes = LAYOUTS[layout]
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, sizes.last, sizes.last
        self.stem = self._stem(in_chans, sizes.stem, large=layout == "imagenet")
        stages: list[nn.Module] = []
        inside, place = sizes.stem, 0
        for stage, (channels, count) in enumerate(zip(sizes.stages, modules, strict=True)):
            parts: list[nn.Module] = [Unit(inside, channels, stride=1 if stage == 0 else 2)]
            for _ in range(count):
                # Down to the same resolution from every stage: 7 x 7 of 224 pixels, 4 x 4 of 32.
                scan = mask == "rwkv7"
                way = (
                    ScanMask(channels, head_dim, place, sum(modules)) if scan else BottomUpTopDown(channels, 3 - stage)
                )
                parts.append(AttentionModule(channels, way))
                place += 1
            stages.append(nn.Sequential(*parts))
            inside = channels
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(Unit(inside, sizes.last, sizes.last_stride), *_units(sizes.last, 2))
        self.norm = nn.Sequential(nn.BatchNorm2d(sizes.last), nn.ReLU(inplace=True))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head()
        self._init_convs()

    @staticmethod
    def _stem(in_chans: int, channels: int, *, large: bool) -> nn.Sequential:
        if not large:
            return nn.Sequential(_conv(in_chans, channels, 3))
        return nn.Sequential(
            _conv(in_chans, channels, 7, 2),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )

    def _init_convs(self) -> None:
        """He's normal, as in the ResNets of the time; RWKV-7 mixers have initialised themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _new_head(self) -> nn.Module:
        if self.num_classes < 1:
            return nn.Identity()
        weight = next(self.parameters())
        return nn.Linear(self.num_features, self.num_classes, device=weight.device, dtype=weight.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features (B, num_features, H', W'), after the last norm and ReLU."""
        return self.norm(self.last(self.stages(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (B, num_features, H', W') -> logits (B, num_classes), or what the head would read."""
        x = self.head_drop(x.mean(dim=(2, 3)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh head for another number of classes, on the model's device; 0 leaves it out."""
        self.num_classes = num_classes
        self.head = self._new_head()
