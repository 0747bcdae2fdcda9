"""The layers every app shares. Importing this package fills the registries."""

from core.layers.attention import Attention
from core.layers.bi_wkv import BiWKV
from core.layers.block import Block
from core.layers.channel_mix import MLP, ChannelMix
from core.layers.context import Context
from core.layers.gated_channel_mix import GatedChannelMix
from core.layers.registry import Registry, channel_mixers, token_mixers
from core.layers.scan import SCANS, Scan, WKVInputs, resolve_scan, scan_wkv7
from core.layers.time_mix import StateReader, TimeMix
from core.layers.token_shift import TOKEN_SHIFTS, TokenShift

__all__ = [
    "MLP",
    "SCANS",
    "TOKEN_SHIFTS",
    "Attention",
    "BiWKV",
    "Block",
    "ChannelMix",
    "Context",
    "GatedChannelMix",
    "Registry",
    "Scan",
    "StateReader",
    "TimeMix",
    "TokenShift",
    "WKVInputs",
    "channel_mixers",
    "resolve_scan",
    "scan_wkv7",
    "token_mixers",
]
