"""Tensors by name, in and out of files, and never a line of code with them.

``torch.load`` runs with ``weights_only=True`` alone; what needs more is refused. Files are written whole or not
at all (:mod:`core.atomic`).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.atomic import replacing
from core.errors import UserError


def read_torch_file(path: Path, within: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors of a ``torch.save`` file, on the CPU and memory-mapped where its format allows.

    Args:
        path: the file.
        within: entries that may hold the tensors ("state_dict"), beside others that are left alone.

    Raises:
        UserError: missing, broken, or holding anything but tensors by name.
    """
    _require(path)
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects beside tensors, and reading those could run code: "
            "save only the tensors, torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a torch.save file: {_first_line(error)}.") from error
    if isinstance(content, dict):
        content = next((content[name] for name in within if name in content), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds {type(content).__name__} data, expected a dict of tensors by name.")
    return content


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format of torch < 1.6 cannot be mapped, or the file is broken: then this says so
        return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one ``.safetensors`` file.

    Raises:
        UserError: missing or broken.
    """
    _require(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {_first_line(error)}.") from error


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of a model folder: ``model.safetensors``, its shards, or ``pytorch_model.bin``.

    Raises:
        UserError: none of them is there, or a shard is missing or named outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    if index.exists():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UserError(f"{index} names files outside its folder: {shards}.")
        return {name: tensor for shard in shards for name, tensor in read_safetensors(folder / shard).items()}
    if (folder / "pytorch_model.bin").exists():
        return read_torch_file(folder / "pytorch_model.bin")
    raise UserError(f"{folder} holds no model: expected model.safetensors in it.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object as plain data.

    Raises:
        UserError: missing, not JSON, or no object.
    """
    _require(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON: {_first_line(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def write_torch_file(tensors: Mapping[str, Tensor | Mapping[str, Tensor]], path: Path) -> None:
    """A dict of tensors, or of such dicts, as ``torch.save`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        torch.save(dict(tensors), new)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors as a ``.safetensors`` file, marked as PyTorch's (transformers looks for that)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        save_file(dict(tensors), new, metadata={"format": "pt"})


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """A JSON object, indented, keys in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
