"""The task: what counts in the loss, what the metrics judge, what a run leaves for others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.timeseries.data import FakeSeries
from apps.timeseries.evaluation import Breakdown, seasonal_naive
from apps.timeseries.forecaster import Output
from apps.timeseries.losses import ForecastLoss
from apps.timeseries.metrics import ForecastErrors, pinball
from apps.timeseries.model import build_model
from apps.timeseries.report import ReportFacts, curves_of, write_report
from apps.timeseries.series import Series
from apps.timeseries.task import ForecastTask, judged
from apps.timeseries.windows import Case, join
from core.errors import UserError
from core.train.trainers import build_trainer

MODEL = {
    "name": "rimer", "patch_len": 8, "output_len": 16, "dim": 16, "num_layers": 1, "head_dim": 8, "max_period": 24,
    "num_periods": 1,
}  # fmt: skip
OPTIM = {"name": "adamw", "lr": 1e-2, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def data() -> FakeSeries:
    found = FakeSeries(context=64, horizon=16, windows_per_epoch=64, batch_size=16, length=200, missing=0.05)
    found.setup_once()
    return found


def task(data: FakeSeries, model: dict[str, Any] | None = None, **options: Any) -> ForecastTask:
    return ForecastTask({**MODEL, **(model or {})}, OPTIM, data.describe(), **options)


def batch_of(data: FakeSeries) -> Series:
    return next(iter(data.train_dataloader()))


def cases_of(data: FakeSeries) -> Case:
    return join([data.test_set[i] for i in range(len(data.test_set))])


@pytest.mark.parametrize(
    ("kind", "space", "heavier", "norm"),
    [
        ("quantile", "normalised", 1, "causal"), ("quantile", "normalised", 4, "causal"),
        ("quantile", "data", 0.5, "causal"), ("mse", "data", 1, "window"),
    ],
)  # fmt: skip
def test_the_loss_is_a_plain_loop_over_what_counts(
    data: FakeSeries, kind: str, space: str, heavier: float, norm: str
) -> None:
    options = {"norm": norm, "input_len": 64} if norm == "window" else {}
    model = build_model({**MODEL, **options, **({} if kind == "quantile" else {"quantiles": []})})
    batch = batch_of(data)
    history = batch.first(64)
    visible = history.observed & (torch.rand(16, 64) < 0.8)
    visible[3, :24] = False  # nothing to normalise by in the first three tokens
    out = model(history.seen_as(visible))
    out = out._replace(z=(out.z + torch.randn(*out.z.shape[:-1], 1)).detach())
    losses, weights = [], []
    for row in range(16):
        for token in range(8):
            shown = visible[row, : 8 * token + 8]
            if shown.sum() < 2:
                continue
            loc, scale = out.loc[row, token], out.scale[row, token]
            weight = 1 if visible[row, 8 * token + 7] or not visible[row, 8 * token : 8 * token + 8].any() else heavier
            for slot in range(24):
                step = 8 * token + slot
                if norm == "causal":
                    step = max(8 * token, int(shown.nonzero()[-1]) + 1) + slot
                if step >= 80 or not batch.observed[row, step] or (step < 8 * token + 8 and visible[row, step]):
                    continue
                y, z = batch.values[row, step], out.z[row, token, slot]
                if space == "data":
                    z = model.denormalise(z, loc, scale)
                else:
                    y = model.normalise(y, loc, scale)
                weights.append(weight)
                if kind == "mse":
                    losses.append(float((z[0] - y) ** 2))
                else:
                    losses.append(float(pinball(z, y.reshape(()), torch.tensor(model.quantiles, dtype=z.dtype)).mean()))
    found = ForecastLoss(kind, space, heavier)(model, out, batch.values, batch.observed, visible)
    assert float(found) == pytest.approx(np.average(losses, weights=weights), rel=1e-5)


def test_a_shorter_truth_is_not_judged_beyond_its_end(data: FakeSeries) -> None:
    model = build_model(MODEL)
    batch = batch_of(data)
    history = batch.first(64)
    out = model(history)
    full = ForecastLoss()(model, out, batch.values, batch.observed.clone().index_fill_(1, torch.arange(70, 80), False),
                          history.observed)  # fmt: skip
    cut = ForecastLoss()(model, out, batch.values[:, :70], batch.observed[:, :70], history.observed)
    assert torch.equal(full, cut)


def test_a_constant_or_empty_history_gives_no_loss_and_no_gradient_that_is_none() -> None:
    model = build_model(MODEL)
    values = torch.full((2, 80), 5.0, dtype=torch.float64)
    values[:, 64:] = 100.0
    observed = torch.ones(2, 80, dtype=torch.bool)
    observed[1, :64] = False
    series = Series(values, observed, torch.zeros(2).long(), torch.zeros(2, 1).long())
    visible = observed[:, :64]
    loss = ForecastLoss()(model, model(series.first(64).seen_as(visible)), values, observed, visible)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_options_that_make_no_sense(data: FakeSeries) -> None:
    with pytest.raises(UserError, match=r"task\.loss is 'mape'; expected one of quantile, mse, mae"):
        task(data, loss="mape")
    with pytest.raises(UserError, match=r"task\.loss is 'mse', but the model predicts quantiles"):
        task(data, loss="mse")
    with pytest.raises(UserError, match=r"task\.loss is 'quantile', but the model predicts points"):
        task(data, {"quantiles": []})
    with pytest.raises(UserError, match=r"task\.hide_rows is 2"):
        task(data, hide_rows=2.0)
    with pytest.raises(UserError, match=r"task\.hide_ends is -1"):
        task(data, hide_ends=-1)
    with pytest.raises(UserError, match=r"task\.part_filled_weight is 0"):
        task(data, part_filled_weight=0)
    with pytest.raises(UserError, match=r"data\.context is 64, no multiple of the model's patch_len 24"):
        task(data, {"patch_len": 24, "output_len": 24})
    with pytest.raises(UserError, match=r"task\.point is 'mode'"):
        task(data, point="mode")


@pytest.mark.parametrize(("model", "ends"), [({}, 1.0), ({"norm": "window", "input_len": 64}, 0.0)])
def test_readers_of_windows_have_no_part_filled_patches(data: FakeSeries, model: dict[str, Any], ends: float) -> None:
    assert task(data, model).hide_ends == ends


def shown_to(made: ForecastTask, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the model is shown from now on, a mask for each call."""
    seen: list[Tensor] = []
    forward = made.model.forward

    def watch(series: Series) -> Output:
        seen.append(series.observed)
        return forward(series)

    monkeypatch.setattr(made.model, "forward", watch)
    monkeypatch.setattr(made, "log", lambda *args, **kwargs: None)
    return seen


def test_training_series_lose_less_than_a_patch_at_their_end(data: FakeSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(data, hide_rows=0.0)
    seen = shown_to(made, monkeypatch)
    torch.manual_seed(0)
    batch = batch_of(data)
    made.training_step(batch, 0)
    before, patch = batch.first(64).observed, made.forecaster.patch_len
    lost = before & ~seen[0]
    places = torch.arange(64)
    ends = (before * (places + 1)).amax(1, keepdim=True)
    assert lost.any(1).any()
    assert not (lost & (places < ends - patch + 1)).any()
    assert not (seen[0] & ~before).any()


def test_inputs_are_hidden_while_training_alone(data: FakeSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(data, hide_rows=1.0, hide_share=1.0)
    seen = shown_to(made, monkeypatch)
    batch = batch_of(data)
    made.training_step(batch, 0)
    assert int(seen[0].sum()) < int(batch.first(64).observed.sum())
    made.validation_step(cases := cases_of(data), 1)
    assert torch.equal(seen[1], cases.history.observed)


def test_forecasts_by_the_window_and_by_streams_agree(data: FakeSeries) -> None:
    made = task(data).eval()
    cases = cases_of(data)
    assert (cases.length == 64).all()
    by_window = made.forecast(cases)
    longer = Case(  # one step of padding sends it through streams
        cases.history._replace(
            values=torch.nn.functional.pad(cases.history.values, (0, 8)),
            observed=torch.nn.functional.pad(cases.history.observed, (0, 8)),
        ),
        *cases[1:],
    )
    by_stream = made.forecast(longer)
    assert by_window.shape == (len(cases.target), 16, 21)
    torch.testing.assert_close(by_stream, by_window, rtol=1e-5, atol=1e-5)


def test_short_histories_and_far_horizons_are_forecast() -> None:
    short = FakeSeries(context=64, horizon=40, val_size=0, test_size=40, length=90)
    short.setup_once()
    made = ForecastTask(MODEL, OPTIM, short.describe()).eval()
    cases = cases_of(short)
    assert int(cases.length.min()) < 64
    assert torch.isfinite(made.forecast(cases)).all()


def test_the_truth_never_reaches_the_forecast(data: FakeSeries) -> None:
    made = task(data).eval()
    cases = cases_of(data)
    spoiled = cases._replace(target=cases.target + 1000)
    assert torch.equal(made.forecast(cases), made.forecast(spoiled))


def test_series_that_showed_nothing_are_not_judged(data: FakeSeries) -> None:
    cases = cases_of(data)
    cases.history.observed[0] = False
    mask = judged(cases)
    assert not mask[0].any()
    assert torch.equal(mask[1:], cases.observed[1:])


def test_seasonal_naive_repeats_the_last_season() -> None:
    values = torch.zeros(2, 12, dtype=torch.float64)
    values[0], values[1, :3] = torch.arange(12.0), torch.tensor([7.0, 8.0, 9.0])
    observed = values > -1
    observed[0, 9], observed[1, 3:] = False, False
    history = Series(values, observed, torch.zeros(2).long(), torch.full((2, 1), 4))
    blank = torch.zeros(2, 6)
    case = Case(history, torch.tensor([12, 3]), blank, blank > 0, torch.ones(2), torch.zeros(2, 2).long())
    found = seasonal_naive(case)
    assert found[0].tolist() == [8, 8, 10, 11, 8, 8], "the missing step 9 is filled by step 8"
    assert found[1].tolist() == [9, 7, 8, 9, 9, 7], "less than a season is known: its last value, then what there is"
    alone = seasonal_naive(case._replace(history=history._replace(periods=torch.zeros(2, 0).long())))
    assert alone[0].tolist() == [11] * 6


def test_the_breakdown_adds_up_to_the_metrics(data: FakeSeries) -> None:
    made = task(data).eval()
    cases = cases_of(data)
    forecast = made.forecast(cases)
    found = Breakdown(made.forecaster.quantiles)
    for row in range(len(cases.target)):
        one = Case(Series(*(None if p is None else p[row : row + 1] for p in cases.history)),
                   *(part[row : row + 1] for part in cases[1:]))  # fmt: skip
        found.update(one, forecast[row : row + 1], judged(one))
    errors = found.summary()
    counts = judged(cases).sum(0).double()
    by_step = found.by_step()
    weighted = (torch.tensor(by_step["mae"]) * counts).sum() / counts.sum()
    assert float(weighted) == pytest.approx(errors["model"]["mae"], rel=1e-6)
    by_series = found.by_series(data.panel.names)
    assert set(by_series) == set(data.panel.names)
    assert sum(entry["steps"] for entry in by_series.values()) == int(counts.sum())
    total = sum(entry["steps"] * entry["naive_mae"] for entry in by_series.values())
    assert total / int(counts.sum()) == pytest.approx(errors["seasonal_naive"]["mae"], rel=1e-6)
    shares = list(found.by_level().values())
    assert shares == sorted(shares)
    above = (cases.target <= forecast[..., 10])[judged(cases)].double().mean()
    assert found.by_level()["0.5"] == pytest.approx(float(above))


def test_the_breakdown_asks_no_other_process(data: FakeSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is the first process's alone: waiting for the others, which have gone, would end it."""
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    cases = cases_of(data)
    asking, alone = ForecastErrors(()), Breakdown(())
    asking.update(cases.target[..., None], cases.target, judged(cases), cases.scale)
    with pytest.raises((ValueError, RuntimeError)):
        asking.compute()
    alone.update(cases, cases.target[..., None], judged(cases))
    assert alone.summary()["model"]["mae"] == 0


def test_training_lowers_the_loss_and_beats_nothing_learned(data: FakeSeries) -> None:
    torch.manual_seed(0)
    made = task(data, pictures=0)
    trainer = build_trainer({"max_epochs": 3, "accelerator": "cpu", "enable_checkpointing": False}, [], [])
    before = trainer.validate(made, datamodule=data, verbose=False)[0]
    trainer.fit(made, datamodule=data)
    after = trainer.validate(made, datamodule=data, verbose=False)[0]
    assert after["val/loss"] < 0.9 * before["val/loss"]
    names = {"loss", "mse", "mae", "mase", "wql", "coverage_80", "coverage_95"}
    assert set(after) == {f"val/{name}" for name in names}
    assert all(math.isfinite(value) for value in after.values())


def test_hyper_parameters_load_without_running_code(data: FakeSeries, tmp_path: Path) -> None:
    made = task(data, hide_rows=0.25)
    torch.save(dict(made.hparams), tmp_path / "hparams.pt")
    again = ForecastTask(**torch.load(tmp_path / "hparams.pt", weights_only=True))
    assert again.state_dict().keys() == made.state_dict().keys()
    assert again.hide_rows == 0.25


@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_the_pretrained_config_rebuilds_the_model(data: FakeSeries, mixer: str) -> None:
    made = task(data, {"mixer": mixer, "num_periods": 2})  # the data name one: the other is filled up
    config = made.pretrained_config()
    assert config["app"] == "timeseries"
    rebuilt = build_model(config["model"])
    rebuilt.load_state_dict(made.model.state_dict())
    series = cases_of(data).history
    padded = series._replace(periods=torch.tensor([[12, 0]]).expand(len(series.values), 2))
    assert torch.equal(rebuilt.eval()(padded).z, made.eval()(series).z)


def test_the_report_holds_everything_in_one_file(data: FakeSeries, tmp_path: Path) -> None:
    made = task(data)
    (tmp_path / "config.yaml").write_text("seed: 123 # <b>\n")
    history = [{"epoch": i, "train/loss_epoch": 1.0 / (i + 1), "val/loss": 0.9, "val/mase": 1.0} for i in range(3)]
    page = made.write_report(tmp_path / "report", data, {}, history)
    assert page is not None
    text = page.read_text()
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"index.html", "forecasts.png", "curves.png", "steps.png", "reliability.png"}
    assert text.count("data:image/png;base64,") == 4
    assert "seed: 123 # &lt;b&gt;" in text
    assert "seasonal naive" in text
    assert "greylag predict run=" in text
    assert f"{sum(p.numel() for p in made.model.parameters()):,}" in text


def test_a_point_forecasters_report_has_no_intervals(tmp_path: Path) -> None:
    errors = {"model": {"mase": 1.0, "mae": 2.0}, "seasonal_naive": {"mase": 1.5, "mae": 1.0}}
    facts = ReportFacts("x", "<y>", [("1", "one")], [], errors, {"mae": [1.0], "naive_mae": [2.0]}, {}, 3)
    text = write_report(tmp_path, facts).read_text()
    assert "&lt;y&gt;" in text
    assert "<strong>1</strong>" in text
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "steps.png"}
    assert curves_of([{}]) == {}
