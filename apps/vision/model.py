"""VRWKV-7: a plain vision backbone on RWKV-7, in timm's shape.

Patches -> position embedding -> blocks at one resolution, each seeing the token grid through a
quad-directional shift and one or several scans -> norm -> mean over tokens -> linear head.

The skeleton is Vision-RWKV's (arXiv 2403.02308; OpenGVLab/Vision-RWKV
``classification/mmcls_custom/models/backbones/vrwkv.py``); the token mixer is RWKV-7 (arXiv 2503.14456)
where the original has RWKV-4 or RWKV-6. There is no official VRWKV-7.

``mixer="attention"`` gives the twin: a ViT of the same width and depth (softmax attention and GELU MLP, no token
shift), its MLPs widened until it has the parameters of the RWKV-7 model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from apps.vision.residual_attention import ResidualAttention
from core.backbone import Backbone
from core.errors import UserError, did_you_mean
from core.layers.context import Context


class VRWKV7(nn.Module):
    """Image classifier and feature extractor for images of any height and width.

    Args:
        img_size: (height, width) or one number, in pixels: the grid the position embedding is trained on.
            Other sizes are taken at any time; the embedding is resampled and odd edges are padded.
        patch_size: edge of a patch in pixels, or (height, width).
        in_chans: image channels.
        num_classes: 0 leaves the head out.
        global_pool: "avg" (mean over tokens) or "" (none).
        embed_dim, depth, head_dim: width, number of blocks, channels per head.
        mixer: name of the token mixer, or one name per block.
        channel_mixer: name of the channel mixer, or a list; None: the one that belongs to the token mixer (the
            squared-ReLU network to RWKV-7, the GELU MLP to attention).
        token_shift, scan: see ``core.layers``; "split2" and "split4" divide the heads among directions.
        hidden_dim: width inside the channel mixers. None: 4 x embed_dim for RWKV-7, and for other mixers
            what brings the model to the RWKV-7 model's number of parameters (see the attribute).
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the position embedding.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        grad_checkpointing: recompute blocks in the backward pass instead of storing their activations.

    Shapes:
        images (B, in_chans, H, W) -> features (B, N, embed_dim), N = ceil(H / p) * ceil(W / p) -> logits
        (B, num_classes).

    Raises:
        ValueError: a width that the head size does not divide, or an unknown name.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 12,
        head_dim: int = 32,
        mixer: str | list[str] = "rwkv7",
        channel_mixer: str | list[str] | None = None,
        token_shift: str = "quad",
        scan: str = "bidirectional",
        hidden_dim: int | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % head_dim:
            raise ValueError(f"embed_dim={embed_dim} is no multiple of head_dim={head_dim}.")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 0
        self.global_pool = _checked_pool(global_pool)

        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.patch_embed = PatchEmbed(
            img_size=size,
            patch_size=patch_size,  # pyright: ignore[reportArgumentType]  # timm takes a pair, too
            in_chans=in_chans,
            embed_dim=embed_dim,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        grid = self.patch_embed.dynamic_feat_size(size)
        self.grid_size = grid
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        shape: dict[str, Any] = {"dim": embed_dim, "num_layers": depth, "head_dim": head_dim}
        mixers: dict[str, Any] = {"mixer": mixer, "channel_mixer": channel_mixer}
        self.hidden_dim = hidden_dim or matching_hidden_dim(**shape, **mixers)
        self.backbone = Backbone(
            **shape,
            **mixers,
            token_shift=token_shift,
            scan=scan,
            hidden_dim=self.hidden_dim,
            drop_path=drop_path_rate,
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self._init_ends()
        self.set_grad_checkpointing(grad_checkpointing)

    def _init_ends(self) -> None:
        """The two ends as in Vision-RWKV and timm's ViT; the backbone has initialised itself."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        weight = self.patch_embed.proj.weight
        # As a linear map of the patch: LeCun's normal, so that a patch keeps its scale whatever its size.
        nn.init.trunc_normal_(weight, std=weight[0].numel() ** -0.5)
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        self._init_head()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> normalised token features (B, N, embed_dim) in raster order."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        position = resample_abs_pos_embed(
            self.pos_embed, new_size=list(grid), old_size=list(self.grid_size), num_prefix_tokens=0
        )
        x = self.pos_drop(x.flatten(1, 2) + position)
        return self.backbone(x, ctx=Context(grid=grid, keep_state=False))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Token features (B, N, embed_dim) -> logits (B, num_classes), or what the head would read."""
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for another number of classes, on the model's device; 0 leaves it out."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        weight = self.pos_embed
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes > 0
            else nn.Identity()
        )
        self._init_head()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.grad_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """For optimisers built by timm: everything but the matrices, as ``core.init`` groups them."""
        return {name for name, p in self.named_parameters() if p.ndim < 2 or not name.endswith(".weight")}


def matching_hidden_dim(
    dim: int, num_layers: int, head_dim: int, mixer: str | list[str], channel_mixer: str | list[str] | None
) -> int:
    """The channel mixers' width that gives a backbone the parameters of the RWKV-7 one (hidden 4 x dim).

    A multiple of 8, so that the two differ by at most 4 hidden units per layer; for RWKV-7 itself 4 x dim.
    """

    def size(hidden: int, mixer: str | list[str], channel_mixer: str | list[str] | None) -> int:
        with torch.device("meta"):
            return count_parameters(
                Backbone(
                    dim, num_layers, head_dim=head_dim, mixer=mixer, channel_mixer=channel_mixer, hidden_dim=hidden
                )
            )

    base = 4 * dim
    missing = size(base, "rwkv7", None) - size(base, mixer, channel_mixer)
    step = size(base + 8, mixer, channel_mixer) - size(base, mixer, channel_mixer)
    return max(8, base + 8 * round(missing / step))


def _checked_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool is '{global_pool}'; expected 'avg' or ''.")
    return global_pool


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vrwkv7": VRWKV7,
    "residual_attention": ResidualAttention,
}
"""What a config may name; a file's content builds models through this table and nothing else."""

_FROM_DATA = ("img_size", "in_chans", "num_classes")


def build_vision_model(model: dict[str, Any], data: dict[str, Any]) -> nn.Module:
    """The model of a config: its own options, and what the data decide (input size, channels, classes).

    Args:
        model: ``name`` (of :data:`MODELS`) and that class's options.
        data: a data module's ``describe()``.

    Raises:
        UserError: an unknown name or option, with the nearest known one; sizes that do not fit.
    """
    options = dict(model)
    name = options.pop("name", "vrwkv7")
    if name not in MODELS:
        raise UserError(f"There is no vision model '{name}'{did_you_mean(name, list(MODELS))}")
    known = [parameter for parameter in inspect.signature(MODELS[name]).parameters if parameter not in _FROM_DATA]
    for key in options:
        if key in _FROM_DATA:
            raise UserError(f"The model has no option '{key}': the data decide it.")
        if key not in known:
            raise UserError(f"The model '{name}' has no option '{key}'{did_you_mean(key, known)}")
    size = data["img_size"]
    try:
        return MODELS[name](
            img_size=size if isinstance(size, int) else (int(size[0]), int(size[1])),
            in_chans=data["in_chans"],
            num_classes=data["num_classes"],
            **options,
        )
    except ValueError as error:  # of the core's layers: names and sizes that do not fit
        raise UserError(f"The model '{name}' cannot be built: {error}") from error


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
