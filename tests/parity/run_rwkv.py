"""Run the `rwkv` package on every .pth of a folder, in a process of its own: the package changes torch's settings.

    python run_rwkv.py folder

folder/tokens.json holds the tokens; result of model.pth is model.result: "sequence" and "single" logits (T, V) of
the whole sequence at once and token by token, "pieces" of calls of 7 tokens with the state carried on, and "state",
the package's flat list after the whole sequence.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0", RWKV_JIT_ON="1")

import torch

torch.set_num_threads(1)
from rwkv.model import RWKV  # noqa: E402


def logits_of_pieces(model: RWKV, tokens: list[int], size: int) -> torch.Tensor:
    logits, state = [], None
    for start in range(0, len(tokens), size):
        piece = tokens[start : start + size]
        y, state = model.forward(piece, state, full_output=True)
        logits.append(y.reshape(len(piece), -1))
    return torch.cat(logits)


folder = Path(sys.argv[1])
tokens: list[int] = json.loads((folder / "tokens.json").read_text())
for path in folder.glob("*.pth"):
    model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    sequence, state = model.forward(list(tokens), None, full_output=True)
    single, pieces = (logits_of_pieces(model, tokens, size) for size in (1, 7))
    torch.save({"sequence": sequence, "single": single, "pieces": pieces, "state": state}, path.with_suffix(".result"))
