"""Greylag's own folder of a language model: model.safetensors and config.json, whatever its backbone's options."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from core.checkpoint.files import read_folder, read_json, write_json, write_safetensors
from core.checkpoint.model import fill
from core.checkpoint.sizes import check_fit
from core.errors import UserError
from core.lm import RWKV7LM

MODEL = "rwkv7_lm"


def save_pretrained(lm: RWKV7LM, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the model so that `load_pretrained` builds it again.

    Args:
        lm: any RWKV7LM whose configuration is plain data.
        folder: is made.
        dtype: to store in; None keeps the model's.

    Raises:
        UserError: the configuration holds functions (hooks), which a file cannot.
    """
    try:
        config = json.loads(json.dumps(lm.config))
    except TypeError as error:
        raise UserError(f"This model's configuration cannot be saved, since it is not plain data: {error}.") from error
    tensors = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype, copy=True).contiguous()
        for name, tensor in lm.state_dict().items()
    }
    write_safetensors(tensors, Path(folder) / "model.safetensors")
    write_json({"model": MODEL, "config": config}, Path(folder) / "config.json")


def load_pretrained(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> RWKV7LM:
    """The model that `save_pretrained` wrote, on the CPU, in eval mode. Its config is read as plain data.

    Args:
        folder: holds config.json and model.safetensors.
        dtype: of the parameters; None keeps the file's.

    Raises:
        UserError: files are missing or broken, of another model, or do not fit each other.
    """
    folder = Path(folder)
    content = read_json(folder / "config.json")
    if content.get("model") != MODEL or not isinstance(content.get("config"), dict):
        told = content.get("model", content.get("model_type"))
        raise UserError(
            f"{folder / 'config.json'} is of model {told!r}, expected {MODEL!r} as save_pretrained writes it."
        )
    try:
        with torch.device("meta"):
            lm = RWKV7LM(**content["config"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} describes no model: {error}.") from error
    state = read_folder(folder)
    check_fit(state, {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}, str(folder))
    return fill(lm, state, dtype)
