"""What users call: a model with everything around it, from a folder or the Hugging Face Hub.

A model folder holds ``model.safetensors``, ``config.json`` (plain data, no class names) and a model card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from core.checkpoint import files
from core.errors import UserError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class Pipeline(ModelHubMixin):
    """Base of the apps' pipelines.

    A subclass overrides :meth:`build_model`, ``__call__`` and :meth:`predict_files`.

    Args:
        model: its weights in place; put into evaluation mode.
        config: what :meth:`build_model` and the subclass need; JSON values only.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        self.model = model.eval()
        self.config = config

    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        """The architecture that ``config`` describes, through the app's own table: names in a downloaded file
        must never decide what code runs."""
        raise NotImplementedError(f"{cls.__name__} must override build_model().")

    def __call__(self, inputs: Any) -> Any:
        """Inputs of the app's kind in, result objects out."""
        raise NotImplementedError(f"{type(self).__name__} must override __call__().")

    def predict_files(self, input: str, output: Path | None = None, **options: Any) -> int:
        """The work of ``greylag predict``: files in, files or a printed table out; returns the exit code."""
        raise NotImplementedError(f"{type(self).__name__} does not predict from files.")

    def graph(self) -> nn.Module:
        """What ``greylag export`` writes as a graph: tensors in, a tensor out; overridden where the model is not so."""
        return self.model

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the graph's forward, batch of two, for ``greylag export``; overridden where export applies."""
        raise UserError(f"{type(self).__name__} cannot be exported as a graph; format=safetensors works.")

    def card_text(self) -> str:
        """The model card below its head; subclasses may say more."""
        name = type(self).__name__
        parameters = sum(p.numel() for p in self.model.parameters())
        metrics = "".join(f"| {key} | {value:.4g} |\n" for key, value in self.config.get("metrics", {}).items())
        table = f"\n| metric | value |\n|---|---|\n{metrics}" if metrics else ""
        return (
            f"# {self.config.get('app', 'greylag')} {self.config.get('name', '')}\n\n"
            f"Trained with Greylag, on its RWKV-7 core; {parameters:,} parameters.\n{table}\n"
            "```python\n"
            f"from {type(self).__module__} import {name}\n\n"
            f'pipe = {name}.from_pretrained("this folder, or its id on the Hub")\n'
            "```\n"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        **download: Any,
    ) -> Self:
        """A pipeline from a model folder or the Hub.

        Args:
            pretrained_model_name_or_path: a folder written by :meth:`save_pretrained` (or a run folder, whose
                ``model/`` is taken), or a Hub id such as "name/model".
            device: where the model goes; None: GPU if there is one.
            revision: branch, tag or commit on the Hub.
            download: further options of ``huggingface_hub.snapshot_download`` (token, cache_dir, ...).

        Raises:
            UserError: no such folder or id, or its files do not fit together.
        """
        folder = _find(str(pretrained_model_name_or_path), revision, download)
        config = files.read_json(folder / CONFIG)
        model = cls.build_model(config)
        _load(model, files.read_folder(folder), folder)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, config)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model folder; an existing card is replaced, as weights and numbers are."""
        (Path(save_directory) / CARD).unlink(missing_ok=True)
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        # Tied weights are stored once per name: clones, since safetensors refuses shared memory.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.model.state_dict().items()}
        files.write_safetensors(tensors, save_directory / WEIGHTS)
        files.write_json(json.loads(json.dumps(self.config)), save_directory / CONFIG)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of this model; the Hub's mixin calls this."""
        data = ModelCardData(library_name="greylag", tags=["rwkv", "rwkv-7", str(self.config.get("app", "greylag"))])
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self.card_text()}")


def read_model_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a model folder or Hub id, as plain data."""
    return files.read_json(_find(name, revision, {}, weights=False) / CONFIG)


def _find(name: str, revision: str | None, download: dict[str, Any], *, weights: bool = True) -> Path:
    """The folder that holds the model: given, inside a run folder, or downloaded."""
    for folder in (Path(name).expanduser(), Path(name).expanduser() / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if Path(name).expanduser().exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"'{name}' holds no model: expected a folder with {CONFIG} and {WEIGHTS}, or a Hub id.")
    try:
        wanted = [CONFIG, CARD, *(["*.safetensors", "*.safetensors.index.json"] if weights else [])]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, **download))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{name}' is neither a model folder nor a model on the Hub: {reason}") from error


def _load(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        details = " ".join(str(error).split())[:300]
        raise UserError(f"The weights in {folder} do not fit its {CONFIG}: {details}") from error
