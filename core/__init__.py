"""The RWKV-7 core that every Greylag app stands on. It imports no app.

Names are resolved at first use: the command line answers without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.backbone import Backbone as Backbone
    from core.backbone import count_parameters as count_parameters
    from core.backbone import matching_hidden_dim as matching_hidden_dim
    from core.layers import Attention as Attention
    from core.layers import Block as Block
    from core.layers import ChannelMix as ChannelMix
    from core.layers import Context as Context
    from core.layers import TimeMix as TimeMix
    from core.layers import TokenShift as TokenShift
    from core.layers import channel_mixers as channel_mixers
    from core.layers import token_mixers as token_mixers
    from core.lm import RWKV7LM as RWKV7LM
    from core.state import State as State
    from core.wkv import Walk as Walk
    from core.wkv import available_backends as available_backends
    from core.wkv import use_backend as use_backend
    from core.wkv import wkv7 as wkv7

__version__ = "0.1.0"

_HOMES = {
    "core.backbone": ("Backbone", "count_parameters", "matching_hidden_dim"),
    "core.layers": (
        "Attention", "Block", "ChannelMix", "Context", "TimeMix", "TokenShift", "channel_mixers", "token_mixers",
    ),
    "core.lm": ("RWKV7LM",),
    "core.state": ("State",),
    "core.wkv": ("Walk", "available_backends", "use_backend", "wkv7"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
