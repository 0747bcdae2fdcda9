"""Checkpoints of the RWKV-7 language model: Greylag's own folders, and others' formats both ways.

| format | read | write |
|---|---|---|
| Greylag: model.safetensors + config.json | `load_pretrained` | `save_pretrained` |
| BlinkDL: .pth | `load_blinkdl` | `save_blinkdl` |
| flash-linear-attention, Hugging Face | `load_fla` | `save_fla` |
| rwkv.cpp: .bin, FP32 or FP16 | `load_rwkv_cpp` | |
"""

from core.checkpoint.blinkdl import load_blinkdl, save_blinkdl
from core.checkpoint.fla import load_fla, save_fla
from core.checkpoint.pretrained import load_pretrained, save_pretrained
from core.checkpoint.rwkv_cpp import load_rwkv_cpp

__all__ = [
    "load_blinkdl",
    "load_fla",
    "load_pretrained",
    "load_rwkv_cpp",
    "save_blinkdl",
    "save_fla",
    "save_pretrained",
]
