"""Training and evaluation of an image classifier as a Lightning module."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.utils import make_grid

from apps.vision import evaluation, figures
from apps.vision.data import VisionData
from apps.vision.facts import gather_facts
from apps.vision.metrics import BINS, CalibrationError
from apps.vision.mixing import BatchMix, TrainingLoss, mixing_of
from apps.vision.model import build_vision_model
from apps.vision.report import write_report
from apps.vision.transforms import InputSpec, denormalise
from core.errors import UserError
from core.train.data import DataModule
from core.train.task import Task

Batch = tuple[Tensor, Tensor]


class VisionTask(Task):
    """Loss, top-1 and top-5 accuracy and calibration error, pictures in TensorBoard, and a report.

    Args:
        model: options of :func:`apps.vision.model.build_vision_model`.
        optim: see :class:`core.train.task.Task`.
        data: the data module's ``describe()``; decides input size, channels and classes.
        loss: "ce" or "bce", see :class:`apps.vision.mixing.TrainingLoss`.
        label_smoothing: share of the target spread over all classes while training.
        mixup, cutmix, cutmix_minmax, mix_switch, mix_mode: see :class:`apps.vision.mixing.BatchMix`.
        mix_prob: share of the batches that are mixed.
        mix_off_epoch: no mixing from this epoch on (counted from 0); None: to the end.
        pictures: how many pictures TensorBoard shows; 0 for none.

    Batches are (images (B, C, H, W) float, classes (B,) int64).
    """

    study_options = ("resolutions", "bins")

    def __init__(
        self,
        model: dict[str, Any],
        optim: dict[str, Any],
        data: dict[str, Any],
        loss: str = "ce",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_minmax: list[float] | None = None,
        mix_prob: float = 1.0,
        mix_switch: float = 0.5,
        mix_mode: str = "batch",
        mix_off_epoch: int | None = None,
        pictures: int = 16,
    ) -> None:
        super().__init__(model, optim, data)
        self.loss = TrainingLoss(loss, label_smoothing)
        self.spec = InputSpec.from_dict(data)
        self.class_names: list[str] = list(data["class_names"])
        classes = len(self.class_names)
        self.label_smoothing, self.pictures = label_smoothing, pictures
        self.mix_prob, self.mix_off_epoch = mix_prob, mix_off_epoch
        mixing = {"mixup": mixup, "cutmix": cutmix, "minmax": cutmix_minmax, "switch": mix_switch, "mode": mix_mode}
        self.mix = mixing_of(classes, label_smoothing, mixing)
        metrics: dict[str, Any] = {"top1": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            metrics["top5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
        collection = MetricCollection(metrics)
        # By itself: it wants probabilities, and where these are rounded to 0 they rank worse than logits.
        self.calibration = nn.ModuleDict({"val": CalibrationError(), "test": CalibrationError()})
        self.val_metrics = collection.clone(prefix="val/")
        self.test_metrics = collection.clone(prefix="test/")
        self.train_top1 = MulticlassAccuracy(classes, average="micro")
        self._answers: list[Batch] = []

    def build_model(self) -> nn.Module:
        """The architecture that the config names, for these data."""
        return build_vision_model(self.hparams["model"], self.hparams["data"])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes)."""
        return self.model(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch, mixed if so configured -> its loss."""
        images, targets = batch
        mix = self._mix_now()
        if mix is not None:
            images, targets = mix(images, targets)
        if batch_idx == 0 and self.current_epoch == 0:
            self._show_inputs(images)
        logits = self(images)
        loss = self.loss(logits, targets)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(images))
        if mix is None:
            self.train_top1(logits, targets)
            self.log("train/top1", self.train_top1, on_step=False, on_epoch=True)
        return loss

    def _mix_now(self) -> BatchMix | None:
        """How this batch is mixed, if at all; the harness has seeded the draw by (seed, epoch, batch)."""
        over = self.mix_off_epoch is not None and self.current_epoch >= self.mix_off_epoch
        return None if over or torch.rand(()) >= self.mix_prob else self.mix

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss without smoothing, and accuracy."""
        logits = self._evaluate(batch, "val", self.val_metrics)
        if batch_idx == 0:
            self._show_answers(batch, logits)

    def on_test_start(self) -> None:
        """Begin to keep the answers, for the report."""
        self._answers = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As validation, under the name "test"."""
        logits = self._evaluate(batch, "test", self.test_metrics)
        self._answers.append((logits.float().softmax(-1).cpu(), batch[1].cpu()))

    def _evaluate(self, batch: Batch, split: str, metrics: MetricCollection) -> Tensor:
        images, targets = batch
        logits = self(images)
        metrics(logits, targets)
        self.log(f"{split}/loss", F.cross_entropy(logits, targets), sync_dist=True, batch_size=len(images))
        self.log_dict(metrics, prog_bar=True, batch_size=len(images))
        calibration = self.calibration[split]
        assert isinstance(calibration, CalibrationError)
        calibration(logits.float().softmax(-1), targets)
        self.log(f"{split}/calibration_error", calibration, batch_size=len(images))
        return logits

    def study(
        self, data: DataModule, splits: Sequence[str], options: dict[str, Any], console: Console
    ) -> dict[str, Any]:
        """Accuracy by class, calibration, speed and memory; at other resolutions if ``eval.resolutions`` names some.

        Options: "resolutions", multiples of the training resolution; "bins" of the calibration error.
        """
        assert isinstance(data, VisionData)
        factors = evaluation.checked_factors(options.get("resolutions") or [])
        bins = evaluation.checked_bins(options.get("bins", BINS))
        found: dict[str, Any] = {"device": str(self.device), "precision": self._precision(), "splits": {}}
        for split in splits:
            answers = self._collect(data.evaluation_loader(split))
            found["splits"][split] = evaluation.judge(answers, self.class_names, bins)
            evaluation.show(console, split, found["splits"][split])
            rows = [self._at_resolution(data, split, factor, bins) for factor in factors]
            if rows:
                found["splits"][split]["resolutions"] = rows
                evaluation.show_resolutions(console, split, rows)
        return found

    def _collect(self, batches: Any) -> evaluation.Answers:
        plugin = self.trainer.precision_plugin if self._trainer is not None else None
        return evaluation.collect(self, batches, self.device, plugin.forward_context if plugin else nullcontext)

    def _precision(self) -> str:
        return str(self.trainer.precision) if self._trainer is not None else "32-true"

    def _at_resolution(self, data: VisionData, split: str, factor: float, bins: int) -> dict[str, Any]:
        """The same pictures and the same crop, resized to a multiple of the trained size."""
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", (1, 1))
        size = evaluation.size_at(self.spec.img_size, factor, patch)
        try:
            answers = self._collect(data.evaluation_loader(split, size))
        except AssertionError as error:  # timm's way to refuse a size
            raise UserError(f"eval.resolutions: the model does not take images of {size} pixels ({error}).") from error
        found = evaluation.judge(answers, self.class_names, bins)
        del found["classes"]
        return {"factor": factor, "img_size": list(size), **found}

    def pretrained_config(self) -> dict[str, Any]:
        """What :class:`apps.vision.pipeline.VisionPipeline` needs beside the weights."""
        model = dict(self.hparams["model"])
        if (hidden_dim := getattr(self.model, "hidden_dim", None)) is not None:
            # As it came out, so that a file keeps its shape should the rule that matches parameters ever change.
            model["hidden_dim"] = hidden_dim
        return {"app": "vision", "model": model, "data": dict(self.hparams["data"])}

    def write_report(
        self, folder: Path, data: DataModule, metrics: dict[str, Any], history: list[dict[str, Any]]
    ) -> Path:
        """Write the HTML report on the test images; returns its path."""
        # The last test's answers, unless it left the images to several processes.
        whole = self._answers and self._trainer is not None and self.trainer.world_size == 1
        answers = self._answers if whole else self._predict_all(data)
        probabilities, targets = (torch.cat(part) for part in zip(*answers, strict=True))
        options = dict(self.hparams)
        facts = gather_facts(folder.parent, self.model, options, self.device, data, probabilities, targets, history)
        return write_report(folder, facts)

    @torch.inference_mode()
    def _predict_all(self, data: DataModule) -> list[Batch]:
        self.eval()
        return [
            (self(images.to(self.device)).float().softmax(-1).cpu(), targets)
            for images, targets in data.test_dataloader()
        ]

    def _writers(self) -> list[Any]:
        """TensorBoard's writers, if this process keeps any."""
        if not self.pictures or self._trainer is None or not self.trainer.is_global_zero:
            return []
        experiments = [getattr(logger, "experiment", None) for logger in self.loggers]
        return [e for e in experiments if hasattr(e, "add_image") and hasattr(e, "add_figure")]

    def _show_inputs(self, images: Tensor) -> None:
        """The first training images, as the model sees them."""
        for writer in self._writers():
            shown = denormalise(images[: self.pictures].float(), self.spec)
            grid = make_grid(F.interpolate(shown, scale_factor=max(1, 64 // shown.shape[-1])), nrow=8)
            writer.add_image("train/inputs", grid.cpu(), self.global_step)

    def _show_answers(self, batch: Batch, logits: Tensor) -> None:
        """Some validation images with the model's answers, at ten moments of the training."""
        epochs = self.trainer.max_epochs or 1
        if self.trainer.sanity_checking or self.current_epoch % max(1, epochs // 10):
            return
        for writer in self._writers():
            scores, predicted = logits.float().softmax(-1).max(1)
            items = [
                {
                    "image": denormalise(image.float(), self.spec),
                    "label": self.class_names[int(target)],
                    "predicted": self.class_names[int(answer)],
                    "score": float(score),
                }
                for image, target, answer, score in list(zip(*batch, predicted, scores, strict=True))[: self.pictures]
            ]
            writer.add_figure("val/answers", figures.picture_grid(items), self.global_step)
