"""VRWKV-7: a plain vision backbone on RWKV-7, with the interface of timm's VisionTransformer.

Patches -> position embedding -> blocks at one resolution, each seeing the token grid through a
quad-directional shift and one or several scans -> norm -> mean over tokens -> linear head.

The skeleton is Vision-RWKV's (arXiv 2403.02308; OpenGVLab/Vision-RWKV
``classification/mmcls_custom/models/backbones/vrwkv.py``); the token mixer is RWKV-7 (arXiv 2503.14456)
where the original has RWKV-4 or RWKV-6. There is no official VRWKV-7. The sizes are in
:mod:`apps.vision.registry`, where timm finds them.

``mixer="attention"`` gives the twin: a ViT of the same width and depth (softmax attention and GELU MLP, no token
shift), its MLPs widened until it has the parameters of the RWKV-7 model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import PatchEmbed, global_pool_nlc, resample_abs_pos_embed
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from core.backbone import Backbone, matching_hidden_dim
from core.layers.context import Context

POOLS = ("", "avg", "max", "avgmax")
"""What ``global_pool`` may say: no pooling, the mean over tokens, the maximum, half of each."""


class VRWKV7(nn.Module):
    """Image classifier and feature extractor for images of any height and width.

    Args:
        img_size: (height, width) or one number, in pixels: the grid the position embedding is trained on.
        patch_size: edge of a patch in pixels, or (height, width).
        in_chans: image channels.
        num_classes: 0 leaves the head out.
        global_pool: one of :data:`POOLS`.
        embed_dim, depth, head_dim: width, number of blocks, channels per head.
        mixer: name of the token mixer, or one name per block.
        channel_mixer: name of the channel mixer, or a list; None: the one that belongs to the token mixer (the
            squared-ReLU network to RWKV-7, the GELU MLP to attention).
        token_shift, scan: see ``core.layers``; "split2" and "split4" divide the heads among directions.
        hidden_dim: width inside the channel mixers. None: 4 x embed_dim for RWKV-7, and for other mixers
            what brings the model to the RWKV-7 model's number of parameters (see the attribute).
        mixer_kwargs, channel_kwargs: further arguments by mixer's name, e.g. {"rwkv7": {"iclr_scale": 2.0}}.
        init_values: starting value of a learned factor per channel on each branch (LayerScale); None: no such factor.
        pre_norm: a LayerNorm before the first block; post_norm: norms behind the branches. Vision-RWKV has both.
        dynamic_img_size: take images of any size, the position embedding resampled to their grid. False: of
            ``img_size`` alone, as timm's VisionTransformer does unless told otherwise.
        dynamic_img_pad: pad images with zeros at the bottom and the right to whole patches.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the position embedding.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        grad_checkpointing: recompute blocks in the backward pass instead of storing their activations.
        device, dtype: where, and as what, the parameters are made.

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
        scan: str = "alternate",
        hidden_dim: int | None = None,
        mixer_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        channel_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        init_values: float | None = None,
        pre_norm: bool = False,
        post_norm: bool = False,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % head_dim:
            raise ValueError(f"embed_dim={embed_dim} is no multiple of head_dim={head_dim}.")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 0
        self.global_pool = _checked_pool(global_pool)
        self.dynamic_img_size = dynamic_img_size
        shape: dict[str, Any] = {"dim": embed_dim, "num_layers": depth, "head_dim": head_dim}
        mixers: dict[str, Any] = {
            "mixer": mixer, "channel_mixer": channel_mixer,
            "mixer_kwargs": mixer_kwargs, "channel_kwargs": channel_kwargs,
        }  # fmt: skip
        self.hidden_dim = hidden_dim or matching_hidden_dim(**shape, **mixers)
        with nullcontext() if device is None else torch.device(device):
            self.patch_embed = PatchEmbed(
                img_size=pair(img_size),
                patch_size=patch_size,  # pyright: ignore[reportArgumentType]  # timm takes a pair, too
                in_chans=in_chans,
                embed_dim=embed_dim,
                output_fmt="NHWC",
                strict_img_size=not dynamic_img_size,
                dynamic_img_pad=dynamic_img_pad,
            )
            self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], embed_dim))
            self.pos_drop = nn.Dropout(pos_drop_rate)
            self.backbone = Backbone(
                **shape,
                **mixers,
                token_shift=token_shift,
                scan=scan,
                hidden_dim=self.hidden_dim,
                drop_path=drop_path_rate,
                layer_scale=init_values,
                pre_norm=pre_norm,
                post_norm=post_norm,
            )
            self.head_drop = nn.Dropout(drop_rate)
            self.head = self._new_head()
            self._init_ends()
        self.to(dtype=dtype)
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": f"backbone.blocks.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]
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

    def _new_head(self) -> nn.Module:
        if self.num_classes < 1:
            return nn.Identity()
        weight = self.pos_embed
        return nn.Linear(self.embed_dim, self.num_classes, device=weight.device, dtype=weight.dtype)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the tokens that the position embedding holds."""
        assert self.patch_embed.img_size is not None
        return self.patch_embed.dynamic_feat_size(pair(self.patch_embed.img_size))

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's blocks, under timm's name; a block is ``(x, state, ctx) -> (x, state, ctx)``."""
        return self.backbone.blocks

    # ------------------------------------------------------------------------------------------------- forward

    def _embed(self, x: Tensor) -> tuple[Tensor, Context]:
        """Images (B, in_chans, H, W) -> tokens (B, N, embed_dim) with their positions, and their grid."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        position = resample_abs_pos_embed(
            self.pos_embed, new_size=list(grid), old_size=list(self.grid_size), num_prefix_tokens=0
        )
        return self.pos_drop(x.flatten(1, 2) + position), Context(grid=grid, keep_state=False)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> normalised token features (B, N, embed_dim) in raster order."""
        x, ctx = self._embed(x)
        return self.backbone(x, ctx=ctx)[0]

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Token features (B, N, embed_dim) -> (B, embed_dim), or as they are if nothing is pooled."""
        pool_type = self.global_pool if pool_type is None else _checked_pool(pool_type)
        return global_pool_nlc(x, pool_type=pool_type, num_prefix_tokens=0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Token features (B, N, embed_dim) -> logits (B, num_classes), or what the head would read."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """What chosen blocks put out, and the features after the last.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n blocks, or these blocks (negative ones from the end), or all.
            return_prefix_tokens: accepted; there are no prefix tokens.
            norm: through the final norm, each.
            stop_early: leave out the blocks after the last one chosen.
            output_fmt: "NCHW" (B, embed_dim, rows, columns) or "NLC" (B, N, embed_dim).
            intermediates_only: the list alone.
            output_dict: {"image_intermediates": list, "image_features": features} instead of a tuple.

        Returns:
            (features (B, N, embed_dim), list of intermediates), unless asked for another form.
        """
        del return_prefix_tokens
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; expected 'NCHW' or 'NLC'.")
        take, last = feature_take_indices(len(self.blocks), None if indices is None else _plain(indices))
        x, ctx = self._embed(x)
        assert ctx.grid is not None
        grid = ctx.grid
        intermediates: list[Tensor] = []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            x, _, ctx = self.backbone.run_block(i, x, None, ctx)
            if i in take:
                y = self.backbone.ln_out(x) if norm else x
                if output_fmt == "NCHW":
                    y = y.transpose(1, 2).unflatten(2, grid).contiguous()
                intermediates.append(y)
        if output_dict:
            features = {} if intermediates_only else {"image_features": self.backbone.ln_out(x)}
            return {"image_intermediates": intermediates, **features}
        return intermediates if intermediates_only else (self.backbone.ln_out(x), intermediates)

    # ------------------------------------------------------------------------------------- what timm's tools call

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen blocks' outputs do not need; returns their indices, counted from 0."""
        take, last = feature_take_indices(len(self.blocks), _plain(indices))
        self.backbone.truncate(last + 1)
        if prune_norm:
            self.backbone.ln_out = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for another number of classes, on the model's device; 0 leaves it out."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.head = self._new_head().train(self.training)
        self._init_head()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Resample position embedding and patch embedding for another size of image or patch, in pixels."""
        before = self.grid_size
        self.patch_embed.set_input_size(
            img_size=None if img_size is None else pair(img_size),
            patch_size=None if patch_size is None else pair(patch_size),
        )
        if self.grid_size != before:
            position = resample_abs_pos_embed(
                self.pos_embed.detach(), new_size=list(self.grid_size), old_size=list(before), num_prefix_tokens=0
            )
            self.pos_embed = nn.Parameter(position, requires_grad=self.pos_embed.requires_grad)
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()
        assert self.patch_embed.img_size is not None
        _tell_timm(self, pair(self.patch_embed.img_size), pair(self.patch_embed.patch_size))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.grad_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """For optimisers built by timm: everything but the matrices, as ``core.init`` groups them."""
        return {name for name, p in self.named_parameters() if p.ndim < 2 or not name.endswith(".weight")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form a layer, as timm's layer decay and freezing ask; the head is a layer of its own."""
        del coarse
        return {
            "stem": r"^pos_embed|^patch_embed",
            "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.ln_out", (99999,))],
        }


def pair(size: int | Sequence[Any]) -> tuple[int, int]:
    """(height, width) of a size that may be one number; ValueError if it is neither."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2:
        raise ValueError(f"A size is {size}; one number of pixels or (height, width) was expected.")
    return int(both[0]), int(both[1])


def _checked_pool(global_pool: str) -> str:
    if global_pool not in POOLS:
        raise ValueError(f"global_pool is '{global_pool}'; expected 'avg', 'max', 'avgmax' or '' (none).")
    return global_pool


def _plain(indices: int | Sequence[int]) -> int | list[int]:
    return indices if isinstance(indices, int) else list(indices)


def _tell_timm(model: nn.Module, img_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Releases of timm that write a model's construction into what they save have to know of a resize."""
    try:
        from timm.models._input import update_model_input_size
    except ImportError:
        return
    update_model_input_size(model, img_size, patch_size=patch_size)
