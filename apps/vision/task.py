"""Training and evaluation of an image classifier as a Lightning module."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2
from torchvision.utils import make_grid

from apps.vision import figures
from apps.vision.model import build_vision_model, count_parameters
from apps.vision.report import ReportFacts, write_report
from apps.vision.transforms import InputSpec, denormalise
from core.errors import UserError
from core.train.data import DataModule
from core.train.runs import shown_path
from core.train.task import Task

Batch = tuple[Tensor, Tensor]


class VisionTask(Task):
    """Cross-entropy on images, top-1 and top-5 accuracy, pictures in TensorBoard, and a report.

    Args:
        model: options of :func:`apps.vision.model.build_vision_model`.
        optim: see :class:`core.train.task.Task`.
        data: the data module's ``describe()``; decides input size, channels and classes.
        label_smoothing: share of the target spread over all classes while training.
        mixup, cutmix: alpha of the Beta distribution they draw from; 0 switches one off. With both, each
            batch gets one of them at random.
        mix_prob: share of the batches that are mixed.
        pictures: how many pictures TensorBoard shows; 0 for none.

    Batches are (images (B, C, H, W) float, classes (B,) int64).
    """

    def __init__(
        self,
        model: dict[str, Any],
        optim: dict[str, Any],
        data: dict[str, Any],
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        pictures: int = 16,
    ) -> None:
        super().__init__(model, optim, data)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"task.label_smoothing is {label_smoothing}; a number in [0, 1) was expected.")
        self.spec = InputSpec.from_dict(data)
        self.class_names: list[str] = list(data["class_names"])
        classes = len(self.class_names)
        self.label_smoothing, self.mix_prob, self.pictures = label_smoothing, mix_prob, pictures
        mixes: list[nn.Module] = [
            kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
        ]
        # A list, not a ModuleList: there is nothing in them to save or to move.
        self.mix = v2.RandomChoice(mixes) if mixes else None
        metrics: dict[str, Any] = {"top1": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            metrics["top5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
        collection = MetricCollection(metrics)
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
        mixed = self.mix is not None and bool(torch.rand(()) < self.mix_prob)
        if mixed:
            assert self.mix is not None
            images, targets = self.mix(images, targets)
        if batch_idx == 0 and self.current_epoch == 0:
            self._show_inputs(images)
        logits = self(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(images))
        if not mixed:
            self.train_top1(logits, targets)
            self.log("train/top1", self.train_top1, on_step=False, on_epoch=True)
        return loss

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
        return logits

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
        return write_report(folder, self._facts(folder, data, probabilities, targets, history))

    @torch.inference_mode()
    def _predict_all(self, data: DataModule) -> list[Batch]:
        self.eval()
        return [
            (self(images.to(self.device)).float().softmax(-1).cpu(), targets)
            for images, targets in data.test_dataloader()
        ]

    def _facts(
        self, folder: Path, data: DataModule, probabilities: Tensor, targets: Tensor, history: list[dict[str, Any]]
    ) -> ReportFacts:
        facts = self.hparams["data"]
        run = folder.parent
        correct = probabilities.argmax(1) == targets
        top5 = (probabilities.topk(min(5, probabilities.shape[1])).indices == targets[:, None]).any(1)
        epochs = 1 + max((int(row["epoch"]) for row in history if row.get("epoch") is not None), default=-1)
        headline = [
            (f"{100 * correct.float().mean():.2f}%", "test accuracy (top-1)"),
            (f"{int((~correct).sum()):,} of {len(targets):,}", "test images wrong"),
            (f"{count_parameters(self.model):,}", "parameters"),
        ]
        if probabilities.shape[1] > 5:
            headline.insert(1, (f"{100 * top5.float().mean():.2f}%", "test accuracy (top-5)"))
        if epochs:
            headline.append((f"{epochs}", "epochs" + _duration(history)))
        config = run / "config.yaml"
        return ReportFacts(
            title=f"{facts['dataset']}",
            subtitle=f"{self._model_title()}, trained on {facts['sizes']['train']:,} images "
            f"and tested on {len(targets):,} that it had never seen.",
            class_names=self.class_names,
            probabilities=probabilities,
            targets=targets,
            images=lambda index: denormalise(data.test_set[index][0], self.spec),
            headline=headline,
            history=history,
            model=self._model_rows(),
            run=self._run_rows(facts, data.seed),
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            commands=_commands(run),
            split=facts.get("test_split", "test"),
        )

    def _model_title(self) -> str:
        if title := getattr(self.model, "title", None):
            return str(title)
        mixer = self.hparams["model"].get("mixer", "rwkv7")
        return {"rwkv7": "VRWKV-7", "attention": "ViT (the attention twin)"}.get(str(mixer), f"VRWKV with {mixer}")

    def _model_rows(self) -> list[tuple[str, str]]:
        shown = {key: value for key, value in self.hparams["model"].items() if value not in (None, "")}
        rows = [(key.replace("_", " "), str(value)) for key, value in shown.items()]
        height, width = self.spec.img_size
        grid = getattr(self.model, "grid_size", None)
        tokens = f", {grid[0]} x {grid[1]} tokens" if grid else ""
        return [
            ("parameters", f"{count_parameters(self.model):,}"),
            ("input", f"{self.spec.in_chans} x {height} x {width} pixels{tokens}"),
            *rows,
        ]

    def _run_rows(self, facts: dict[str, Any], seed: int) -> list[tuple[str, str]]:
        sizes = facts["sizes"]
        loss = f"cross-entropy, label smoothing {self.label_smoothing:g}"
        optim = {k: v for k, v in self.hparams["optim"].items() if v is not None}
        return [
            ("data", f"{facts['dataset']}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test"),
            ("seed", f"{seed} (of the run), {facts['split_seed']} (of the split into train, val and test)"),
            ("loss", loss),
            ("optimiser", ", ".join(f"{k}={v}" for k, v in optim.items())),
            ("device", f"{self.device} ({platform.processor() or platform.machine()})"),
            ("versions", f"Python {platform.python_version()}, torch {torch.__version__}"),
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


def _duration(history: list[dict[str, Any]]) -> str:
    """Such as " in 70 seconds", by the last row's clock; nothing if the history kept none."""
    seconds = next((float(row["seconds"]) for row in reversed(history) if row.get("seconds")), 0.0)
    if not seconds:
        return ""
    if seconds < 100:
        return f" in {seconds:.0f} seconds"
    return f" in {seconds / 60:.1f} minutes" if seconds < 6000 else f" in {seconds / 3600:.1f} hours"


def _commands(run: Path) -> list[tuple[str, str]]:
    """What to do next, as commands that can be pasted."""
    folder = shown_path(run)
    return [
        ("Classify your own pictures:", f"greylag predict run={folder} input=photo.jpg"),
        (
            "The same in Python:",
            "from apps.vision import VisionPipeline\n"
            f'pipe = VisionPipeline.from_pretrained("{folder}/model")\nprint(pipe("photo.jpg"))',
        ),
        ("Evaluate again:", f"greylag evaluate run={folder}"),
        ("Look at the curves:", f"tensorboard --logdir {folder}/log"),
    ]
