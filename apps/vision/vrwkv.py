"""VRWKV: the original Vision-RWKV, whose released checkpoints :mod:`apps.vision.official` reads.

Source: arXiv 2403.02308; OpenGVLab/Vision-RWKV ``classification/mmcls_custom/models/backbones/vrwkv.py``.
What sets it apart from :class:`apps.vision.vrwkv7.VRWKV7` with ``mixer="bi_wkv"``: a norm on the embedded patches, and
in its larger models norms behind the branches instead of before them, norms inside the mixers, a head of two layers.
"""

from __future__ import annotations

from torch import nn

from apps.vision.vrwkv7 import VRWKV7
from core.backbone import Backbone


class VRWKV(VRWKV7):
    """Image classifier and feature extractor for images of any height and width, with all that VRWKV7 offers.

    Vision-RWKV's sizes: T 192 wide, 12 deep, pre-norm; S 384, 12, post-norm, ``init_values`` 1.0; B 768, 12, post-norm,
    1e-5; L 1024, 24, post-norm, 1e-5, ``key_norm``, ``head_hidden_dim`` 3072.

    Args:
        img_size, patch_size, in_chans, num_classes, embed_dim, depth: see VRWKV7.
        token_shift: "quad", its quarters taken from the whole width.
        hidden_dim: width inside the channel mixers, 4 x embed_dim if None.
        init_values: starting value of a learned factor per channel on each branch; None: no such factor.
        post_norm: the norm on what a branch puts out instead of on what it reads.
        key_norm: a norm on the output of bi_wkv, and one on the hidden layer of the channel mixer.
        head_hidden_dim: width of a hidden layer with tanh in the head; None: a linear head.
        drop_rate, pos_drop_rate, drop_path_rate, grad_checkpointing: see VRWKV7.

    Shapes:
        images (B, in_chans, H, W) -> features (B, N, embed_dim) -> logits (B, num_classes).

    Raises:
        ValueError: a width that 4 does not divide, or an unknown name.
    """

    title = "Vision-RWKV"
    head_hidden_dim: int | None = None

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        token_shift: str = "quad",
        hidden_dim: int | None = None,
        init_values: float | None = None,
        post_norm: bool = False,
        key_norm: bool = False,
        head_hidden_dim: int | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        hidden_dim = hidden_dim or 4 * embed_dim
        super().__init__(
            img_size,
            patch_size,
            in_chans,
            num_classes,
            embed_dim=embed_dim,
            depth=depth,
            head_dim=embed_dim,
            mixer="bi_wkv",
            token_shift=token_shift,
            hidden_dim=hidden_dim,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
        )
        norms = {"key_norm": key_norm}
        self.backbone = Backbone(
            embed_dim,
            depth,
            head_dim=embed_dim,
            mixer="bi_wkv",
            token_shift=token_shift,
            hidden_dim=hidden_dim,
            pre_norm=True,
            post_norm=post_norm,
            layer_scale=init_values,
            drop_path=drop_path_rate,
            mixer_kwargs={"bi_wkv": norms},
            channel_kwargs={"rwkv4": norms},
        )
        self.head_hidden_dim = head_hidden_dim
        self.reset_classifier(num_classes)
        self.set_grad_checkpointing(grad_checkpointing)

    def _new_head(self) -> nn.Module:
        if self.num_classes < 1 or self.head_hidden_dim is None:
            return super()._new_head()
        where = {"device": self.pos_embed.device, "dtype": self.pos_embed.dtype}
        return nn.Sequential(
            nn.Linear(self.embed_dim, self.head_hidden_dim, **where),
            nn.Tanh(),
            nn.Linear(self.head_hidden_dim, self.num_classes, **where),
        )
