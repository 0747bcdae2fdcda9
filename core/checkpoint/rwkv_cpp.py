"""rwkv.cpp's ``.bin`` files (RWKV/rwkv.cpp ``docs/FILE_FORMAT.md``) of RWKV-7, unquantised; read only.

Layout, little-endian: a header of six int32 (magic, version, vocabulary, width, layers, dtype), then for each
tensor three int32 (dimensions, name length, dtype), its shape fastest axis first, its name and its data. Two
layouts differ from BlinkDL's: the token-shift mixes are one ``att.x_rwkvag`` (6, 1, C), LoRA matrices are transposed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from core.checkpoint.blinkdl import from_blinkdl
from core.checkpoint.model import build
from core.checkpoint.sizes import MIXES
from core.errors import UserError
from core.lm import RWKV7LM

_MAGIC = 0x67676D66
_DTYPES = {0: torch.float32, 1: torch.float16}


def load_rwkv_cpp(path: str | Path, dtype: torch.dtype | None = torch.float32) -> RWKV7LM:
    """An RWKV7LM from an rwkv.cpp file in FP32 or FP16, on the CPU, in eval mode.

    Raises:
        UserError: no such file, another format, a quantised file, or no RWKV-7 model.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_rwkv_cpp(path):
        if name.endswith("att.x_rwkvag"):
            rows = tensor.reshape(len(MIXES), 1, 1, -1).unbind()
            tensors |= {name.replace("rwkvag", mix): row for mix, row in zip(MIXES, rows, strict=True)}
        elif re.search(r"att\.[wavg][12]$", name):
            tensors[name] = tensor.T
        elif re.search(r"att\.([wav]0|k_[ka])$|ffn\.x_k$", name):
            tensors[name] = tensor.reshape(1, 1, -1)
        else:
            tensors[name] = tensor
    state, sizes = from_blinkdl(tensors, str(path))
    return build(sizes, state, dtype)


def read_rwkv_cpp(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the file with its name, as stored, slowest axis first.

    Raises:
        UserError: no such file, another format, cut short, or quantised.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    data = bytearray(path.read_bytes())
    if len(data) < 24 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise UserError(f"{path} is no rwkv.cpp file: it does not start with that format's header.")
    place = 24
    try:
        while place < len(data):
            ndim, name_size, kind = struct.unpack_from("<3i", data, place)
            shape = struct.unpack_from(f"<{ndim}i", data, place + 12)[::-1]
            place += 12 + 4 * ndim
            name = data[place : place + name_size].decode()
            place += name_size
            if kind not in _DTYPES:
                raise UserError(f"{path} is quantised ({name} has type {kind}); Greylag reads FP32 and FP16 files.")
            values = torch.frombuffer(data, dtype=_DTYPES[kind], count=math.prod(shape), offset=place)
            place += values.nbytes
            yield name, values.reshape(shape)
    except UserError:
        raise
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is cut short or broken at byte {place} of {len(data)}.") from error
