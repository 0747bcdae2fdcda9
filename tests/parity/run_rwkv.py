"""Run the `rwkv` package on a .pth, in a process of its own: the package changes torch's global settings.

    python run_rwkv.py model_without_suffix tokens.json result.pt

Result: "sequence" and "single" logits (T, V) of the whole sequence at once and token by token, "pieces" of calls of
7 tokens with the state carried on, and "state", the package's flat list after the whole sequence.
"""

import json
import os
import sys

os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0", RWKV_JIT_ON="1")

import torch

torch.set_num_threads(1)
from rwkv.model import RWKV  # noqa: E402

model_path, tokens_path, result_path = sys.argv[1:]
with open(tokens_path) as file:
    tokens: list[int] = json.load(file)
model = RWKV(model=model_path, strategy="cpu fp32")

sequence, state = model.forward(list(tokens), None, full_output=True)
single, carried = [], None
for token in tokens:
    logits, carried = model.forward([token], carried)
    single.append(logits)
pieces, carried = [], None
for start in range(0, len(tokens), 7):
    piece = tokens[start : start + 7]
    logits, carried = model.forward(piece, carried, full_output=True)
    pieces.append(logits.reshape(len(piece), -1))
torch.save(
    {"sequence": sequence, "single": torch.stack(single), "pieces": torch.cat(pieces), "state": state}, result_path
)
