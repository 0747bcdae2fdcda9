"""What users call: a folder or hub id in, answers about pictures out.

pipe = VisionPipeline.from_pretrained("runs/vision/digits/<time>/model")
pipe("photo.jpg").label
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from apps.vision import answers
from apps.vision.answers import Prediction
from apps.vision.images import list_images
from apps.vision.model import build_vision_model
from apps.vision.transforms import EvalTransform, InputSpec
from core.errors import UserError, did_you_mean
from core.pipeline import Pipeline


class VisionPipeline(Pipeline):
    """An image classifier with everything around it: reading, resizing, normalising, naming.

    ``config`` holds "model" (options of :func:`apps.vision.model.build_vision_model`) and "data" (what the
    training data's ``describe()`` said: input spec and class names).
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.spec = InputSpec.from_dict(config["data"])
        self.class_names: list[str] = list(config["data"]["class_names"])
        self.transform = EvalTransform(self.spec)

    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        """The architecture with fresh weights; through the app's own table, never a name from the file."""
        if missing := [key for key in ("model", "data") if not isinstance(config.get(key), dict)]:
            raise UserError(f"The model's config.json has no '{missing[0]}'; it was not written by VisionPipeline.")
        return build_vision_model(config["model"], config["data"])

    def example_inputs(self) -> tuple[Tensor, ...]:
        """A batch of two images of the training size, for export."""
        return (torch.zeros(2, self.spec.in_chans, *self.spec.img_size),)

    def __call__(self, inputs: Any, *, top_k: int = 5, batch_size: int = 32) -> Prediction | list[Prediction]:
        """Classify one picture or several.

        Args:
            inputs: a path, PIL image, NumPy array (H, W[, C]) or tensor ([C,] H, W), grey, colour or with
                transparency; a list of these, or a batch (B, C, H, W) / (B, H, W, C), for several.
            top_k: how many classes to name.
            batch_size: pictures per forward pass.

        Returns:
            One :class:`Prediction` for one picture, a list for several.

        Raises:
            UserError: a picture that cannot be read or has the wrong shape, type or range.
        """
        if isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 4:
            inputs = list(inputs)
        if not isinstance(inputs, list | tuple):
            return self._classify([self.transform(inputs)], top_k)[0]
        found: list[Prediction] = []
        for chunk in _chunks(inputs, batch_size):
            found += self._classify([self.transform(picture) for picture in chunk], top_k)
        return found

    @torch.inference_mode()
    def _classify(self, images: list[Tensor], top_k: int) -> list[Prediction]:
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; it must be at least 1.")
        device = next(self.model.parameters()).device
        logits = self.model(torch.stack(images).to(device)).float()
        scores, indices = logits.softmax(-1).topk(min(top_k, len(self.class_names)), dim=-1)
        return [self._name(*row) for row in zip(scores.tolist(), indices.tolist(), strict=True)]

    def _name(self, scores: list[float], indices: list[int]) -> Prediction:
        top = tuple((self.class_names[i], score) for i, score in zip(indices, scores, strict=True))
        return Prediction(label=top[0][0], index=indices[0], score=scores[0], top=top)

    def predict_files(
        self,
        input: str,
        output: Path | None = None,
        *,
        top_k: int = 5,
        batch_size: int = 32,
        format: str | None = None,
        **options: Any,
    ) -> int:
        """Classify pictures on disk; the work of ``greylag predict``.

        Args:
            input: a picture, a folder (searched through, by file ending), or "-" for a list of paths on
                standard input, one a line.
            output: None prints; a ``.jsonl`` or ``.csv`` file is written; any other name is taken for a folder,
                made if missing, and gets ``predictions.jsonl``.
            top_k: how many classes to name per picture.
            batch_size: pictures per forward pass.
            format: "table", "jsonl" or "csv"; None: a table where nothing is written, else by the file's ending.

        Returns:
            0; or 1 if any picture could not be read. Those are skipped, each with a line on standard error and its
            reason among the answers; the rest goes on.

        Raises:
            UserError: no such input, no pictures in it, an output of another kind, or an unknown option.
        """
        if options:
            known = ["top_k", "batch_size", "format"]
            raise UserError(f"There is no option '{min(options)}'{did_you_mean(min(options), known)}")
        form, target = answers.destination(output, format)
        paths = _find_pictures(input)
        console = Console(stderr=True)
        failures = count = 0
        with answers.writer(form, target, top_k) as write:
            for path, answer in self._answers(paths, top_k, batch_size):
                count += 1
                write(path, answer)
                if isinstance(answer, str):
                    failures += 1
                    console.print(f"skipped: {answer}", highlight=False, markup=False, soft_wrap=True)
        if not count:
            raise UserError("Standard input named no pictures; expected one path a line.")
        if target is not None:
            console.print(f"{count - failures} answers written to {target}", highlight=False, soft_wrap=True)
        if failures:
            console.print(f"[bold]{failures} of {count} pictures could not be read[/]", highlight=False)
        return 1 if failures else 0

    def _answers(self, paths: Iterable[Path], top_k: int, batch_size: int) -> Iterator[tuple[Path, Prediction | str]]:
        """Each path with its answer, or with the sentence that says why there is none; order is kept."""
        for chunk in _chunks(paths, batch_size):
            results: list[Prediction | str | None] = []
            images: list[Tensor] = []
            for path in chunk:
                try:
                    images.append(self.transform(path))
                    results.append(None)
                except UserError as error:
                    results.append(str(error))
            found = iter(self._classify(images, top_k) if images else [])
            for path, result in zip(chunk, results, strict=True):
                yield path, next(found) if result is None else result


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise UserError(f"batch_size is {size}; it must be at least 1.")
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def _find_pictures(input: str) -> Iterable[Path]:
    if input == "-":
        return (Path(line.strip()) for line in sys.stdin if line.strip())
    path = Path(input).expanduser()
    if path.is_dir():
        if not (found := list_images(path)):
            raise UserError(f"The folder '{input}' holds no pictures (endings: .jpg, .png, .webp, ...).")
        return found
    if not path.exists():
        raise UserError(f"There is no file or folder '{input}'.")
    return [path]
