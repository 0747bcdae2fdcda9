"""Training and evaluation of a forecaster as a Lightning module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from apps.timeseries import evaluation, figures
from apps.timeseries.data import ForecastData
from apps.timeseries.evaluation import Breakdown
from apps.timeseries.facts import gather_facts
from apps.timeseries.forecaster import Forecaster, Output
from apps.timeseries.hiding import hidden_steps
from apps.timeseries.losses import ForecastLoss
from apps.timeseries.metrics import ForecastErrors
from apps.timeseries.model import build_model
from apps.timeseries.report import write_report
from apps.timeseries.series import Series
from apps.timeseries.windows import Case
from core.errors import UserError
from core.train.data import DataModule
from core.train.task import Task

_COVARIATES = {"n_futr": "futr", "n_hist": "hist", "n_static": "static"}

_SHOWN = ("mase", "wql")  # while training


class ForecastTask(Task):
    """Loss, errors of forecasts, forecasts in TensorBoard, and a report.

    Training batches are ``Series`` of context + horizon steps, those of validation and test ``Case``.

    Closed-form forecasters are fitted at the start of the training, to the whole training part of every series; they
    stop after one epoch, whose steps change nothing. A model with a closed-form part gets that fitted the same way.

    Args:
        model: options of :func:`apps.timeseries.model.build_model`; numbers of covariates come from the data.
        optim: see :class:`core.train.task.Task`.
        data: the data module's ``describe()``.
        loss, loss_space: see :class:`apps.timeseries.losses.ForecastLoss`.
        point: what "mse", "mae" and "mase" judge, and the report draws: "median" or "mean".
        hide_rows: share of the training series of which something is hidden, so that missing values and horizons
            beyond the model's own are learned; 0: nothing.
        hide_share: up to which share of such a series' steps is hidden.
        hide_tail: steps that are hidden at the end of a series, at most, so that forecasts from any place are
            learned; None: the horizon.
        hide_ends: share of the training series that lose less than a patch of their last steps, so that forecasts
            from part-filled patches are learned; of no effect on models that have none.
        part_filled_weight: how much more those count in training, see :class:`apps.timeseries.losses.ForecastLoss`.
        pictures: how many forecasts TensorBoard and the report show; 0 for none.
    """

    def __init__(
        self,
        model: dict[str, Any],
        optim: dict[str, Any],
        data: dict[str, Any],
        loss: str = "quantile",
        loss_space: str = "normalised",
        point: str = "median",
        hide_rows: float = 0.5,
        hide_share: float = 0.4,
        hide_tail: int | None = None,
        hide_ends: float = 1.0,
        part_filled_weight: float = 1.0,
        pictures: int = 6,
    ) -> None:
        super().__init__(model, optim, data)
        self.loss = ForecastLoss(loss, loss_space, part_filled_weight)
        self.loss.check(self.forecaster)
        for name, value in (("hide_rows", hide_rows), ("hide_share", hide_share), ("hide_ends", hide_ends)):
            if not 0 <= value <= 1:
                raise UserError(f"task.{name} is {value}; a share between 0 and 1 was expected.")
        if point not in ("median", "mean"):
            raise UserError(f"task.point is '{point}'; expected median or mean.")
        self.horizon = int(data["h"])
        self.hide_tail = self.horizon if hide_tail is None else hide_tail
        self.hide_rows, self.hide_share, self.pictures, self.point = hide_rows, hide_share, pictures, point
        self.hide_ends = hide_ends if self.forecaster.part_filled else 0.0
        levels = self.forecaster.quantiles
        self.errors = nn.ModuleDict({split: ForecastErrors(levels, point) for split in ("val", "test")})
        trained = any(p.requires_grad for p in self.model.parameters())
        # Lightning wants a parameter to step on; this one is no part of the model.
        self.idle = None if trained else nn.Parameter(torch.zeros(()))
        self._breakdown: Breakdown | None = None

    @property
    def forecaster(self) -> Forecaster:
        """The model."""
        assert isinstance(self.model, Forecaster)
        return self.model

    def build_model(self) -> nn.Module:
        """The forecaster that the config names, for these data."""
        model = build_model(self._model_options())
        context, patch = self.hparams["data"]["context"], model.patch_len
        if context % patch:
            raise UserError(f"data.context is {context}, no multiple of the model's patch_len {patch}.")
        return model

    def _model_options(self) -> dict[str, Any]:
        facts = self.hparams["data"]
        counts = {option: len(facts[kind]) for option, kind in _COVARIATES.items() if facts[kind]}
        return {**self.hparams["model"], **counts}

    def forward(self, series: Series) -> Output:
        """Series of context steps -> predictions of every token."""
        return self.model(self._with_periods(series))

    def _with_periods(self, series: Series) -> Series:
        """As many season lengths as the model takes: the first ones, or 0 for those that are missing."""
        wanted = getattr(self.model, "num_periods", None)
        if wanted is None or wanted == series.periods.shape[1]:
            return series
        room = (0, wanted - series.periods.shape[1])  # a negative one cuts
        return series._replace(periods=nn.functional.pad(series.periods, room))

    def configure_optimizers(self) -> Any:
        """As every task; for a model without trained parameters, steps that change nothing."""
        return super().configure_optimizers() if self.idle is None else torch.optim.SGD([self.idle], lr=0.0)

    def on_train_start(self) -> None:
        """Fit what is closed-form, unless a checkpoint brought it along."""
        super().on_train_start()
        if self.global_step == 0 and (self.idle is not None or getattr(self.model, "ridge", None) is not None):
            self._fit_closed_form()

    def _fit_closed_form(self) -> None:
        fit = getattr(self.model, "fit_closed_form", None)
        if fit is None:
            return
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(data, ForecastData):
            raise UserError("A closed-form forecaster is fitted to whole series, which these data do not have.")
        train, val = data.rows_to_fit(self.forecaster.input_len or data.context)
        fit(train, val or None)

    def training_step(self, batch: Series, batch_idx: int) -> Tensor:
        """One batch, parts of its inputs hidden -> its loss."""
        steps = batch.values.shape[1] - self.horizon
        history = batch.first(steps)
        visible = history.observed & ~self._hidden(history)
        loss = self.loss(self.forecaster, self(history.seen_as(visible)), batch.values, batch.observed, visible)
        if self.idle is not None:
            loss = loss.detach() + 0 * self.idle
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch.values))
        return loss

    def _hidden(self, history: Series) -> Tensor:
        """(B, N) bool; the harness has seeded the draw by (seed, epoch, batch)."""
        rows, steps = history.values.shape
        place = torch.arange(1, steps + 1, device=history.values.device)
        return hidden_steps(
            rows, steps, self.forecaster.patch_len, chance=self.hide_rows, share=self.hide_share, tail=self.hide_tail,
            ends=self.hide_ends, lengths=(history.observed * place).amax(1), device=history.values.device,
        )  # fmt: skip

    def on_train_epoch_end(self) -> None:
        """A closed-form forecaster has nothing to learn from another epoch."""
        if self.idle is not None:
            self.trainer.should_stop = True

    def validation_step(self, batch: Case, batch_idx: int) -> None:
        """Loss with nothing hidden, and errors of the forecasts."""
        forecast = self._evaluate(batch, "val")
        if batch_idx == 0:
            self._show_forecasts(batch, forecast)

    def on_test_start(self) -> None:
        """Begin to keep the errors by step and by series, for the report."""
        self._breakdown = self.new_breakdown()

    def test_step(self, batch: Case, batch_idx: int) -> None:
        """As validation, under the name "test"."""
        forecast = self._evaluate(batch, "test")
        assert self._breakdown is not None
        self._breakdown.update(batch, forecast, judged(batch))

    def _evaluate(self, batch: Case, split: str) -> Tensor:
        out = self(batch.history)
        whole = batch.whole()
        loss = self.loss(self.forecaster, out, whole.values, whole.observed, batch.history.observed)
        self.log(f"{split}/loss", loss, sync_dist=True, batch_size=len(batch.target))
        forecast = self.forecast(batch, out)
        errors = self.errors[split]
        assert isinstance(errors, ForecastErrors)
        errors.update(forecast, batch.target, judged(batch), batch.scale)
        return forecast

    def on_validation_epoch_end(self) -> None:
        """Log the errors of all forecasts."""
        self._log_errors("val")

    def on_test_epoch_end(self) -> None:
        """Log the errors of all forecasts."""
        self._log_errors("test")

    def _log_errors(self, split: str) -> None:
        errors = self.errors[split]
        assert isinstance(errors, ForecastErrors)
        for name, value in errors.compute().items():
            self.log(f"{split}/{name}", value, prog_bar=name in _SHOWN)
        errors.reset()

    @torch.no_grad()
    def forecast(self, batch: Case, out: Output | None = None) -> Tensor:
        """What the model says of the truth of these cases: (B, horizon, Q) float64; NaN where nothing was seen.

        Args:
            batch: with histories of any lengths.
            out: the model's output for the histories, if it is there.
        """
        horizon, steps = batch.target.shape[1], batch.history.values.shape[1]
        model = self.forecaster
        if horizon <= model.output_len and bool((batch.length == steps).all()):
            out = out or self(batch.history)
            assert out is not None
            z = out.last(steps, horizon)
            return model.denormalise(z, out.loc[:, -1, :, None], out.scale[:, -1, :, None])
        series = self._with_periods(batch.history)
        past = None if series.futr is None else series.futr[:, :steps]
        stream = model.start(series.periods, series.start, series.static)
        stream = model.update(stream, series.values, series.observed, batch.length, past, series.hist)
        ahead = None if series.futr is None else _rows_from(series.futr, batch.length, horizon)
        return model.forecast(stream, horizon, ahead)

    def new_breakdown(self) -> Breakdown:
        """An empty one for this model."""
        return Breakdown(self.forecaster.quantiles, self.point)

    @torch.no_grad()
    def break_down(self, data: DataModule, split: str) -> Breakdown:
        """The errors on all of a split, by step, series and level."""
        self.eval()
        found = self.new_breakdown()
        for batch in data.val_dataloader() if split == "val" else data.test_dataloader():
            here = _to(batch, self.device)
            found.update(batch, self.forecast(here), judged(batch))
        return found

    def study(
        self, data: DataModule, splits: Sequence[str], options: dict[str, Any], console: Console
    ) -> dict[str, Any]:
        """Errors by step ahead and by series beside the seasonal naive forecast's, coverage by level."""
        found: dict[str, Any] = {"splits": {}}
        names = data.panel.names if isinstance(data, ForecastData) else ()
        for split in splits:
            breakdown = self.break_down(data, split)
            found["splits"][split] = {
                "forecasts": len(getattr(data, f"{split}_set")),
                "horizon": self.horizon,
                "errors": breakdown.summary(),
                "by_step": breakdown.by_step(),
                "by_series": breakdown.by_series(names),
                "share_below_quantile": breakdown.by_level(),
            }
            evaluation.show(console, split, found["splits"][split])
        return found

    def pretrained_config(self) -> dict[str, Any]:
        """What ``apps.timeseries.Rimer.load`` and the pipeline need beside the weights."""
        model = self._model_options()
        if (hidden_dim := getattr(self.model, "hidden_dim", None)) is not None:
            # As it came out, so that a file keeps its shape should the rule that matches parameters ever change.
            model["hidden_dim"] = hidden_dim
        return {"app": "timeseries", "model": model, "data": dict(self.hparams["data"])}

    def write_report(
        self, folder: Path, data: DataModule, metrics: dict[str, float], history: list[dict[str, Any]]
    ) -> Path | None:
        """Write the HTML report on the test forecasts (those of validation where there are none); returns its path."""
        split = next((name for name in ("test", "val") if data.has(name)), None)
        if split is None:
            return None
        # The last test's errors, unless it left forecasts to several processes.
        whole = split == "test" and self._breakdown and self._trainer is not None and self.trainer.world_size == 1
        breakdown = self._breakdown if whole and self._breakdown else self.break_down(data, split)
        return write_report(folder, gather_facts(folder.parent, self, data, split, breakdown, history))

    def _show_forecasts(self, batch: Case, forecast: Tensor) -> None:
        """Some validation forecasts, at ten moments of the training."""
        epochs = self.trainer.max_epochs or 1
        if self.trainer.sanity_checking or self.current_epoch % max(1, epochs // 10):
            return
        if not self.pictures or not self.trainer.is_global_zero:
            return
        for logger in self.loggers:
            writer = getattr(logger, "experiment", None)
            if writer is not None and hasattr(writer, "add_figure"):
                fans = figures.fans_of(batch, forecast, self.forecaster.quantiles, self.pictures)
                writer.add_figure("val/forecasts", figures.forecast_fans(fans), self.global_step)


def judged(batch: Case) -> Tensor:
    """(B, horizon) bool: truths that are known, of series that had shown something before."""
    return batch.observed & batch.history.observed.any(1)[:, None]


def _to(batch: Case, device: torch.device) -> Case:
    return Case(batch.history.to(device), *(part.to(device) for part in batch[1:]))


def _rows_from(values: Tensor, begin: Tensor, count: int) -> Tensor:
    """values[b, begin[b] : begin[b] + count]: (B, N, F) -> (B, count, F)."""
    at = begin[:, None] + torch.arange(count, device=values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], at]
