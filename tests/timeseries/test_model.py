"""Contracts of the forecaster: what it may see, what a stream must equal, and which sizes fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from apps.timeseries.forecaster import Forecaster
from apps.timeseries.model import RimerModel, build_model
from apps.timeseries.readout import Readout
from apps.timeseries.ridge import apply
from apps.timeseries.series import Series, stack
from apps.timeseries.stream import Stream
from core import count_parameters
from core.errors import UserError

SMALL: dict[str, Any] = {
    "patch_len": 8, "output_len": 16, "dim": 32, "num_layers": 2, "head_dim": 16, "max_period": 24,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention": {"mixer": "attention"},
    "hybrid": {"mixer": ["rwkv7", "attention"]},
    "forgetting": {"norm_halflife": 50.0},
    "unnormalised": {"norm": "none", "arcsinh": False},
    "ridge": {"ridge": True, "input_len": 32},
    "halfway": {"ridge": "mean", "input_len": 32},
    "affine": {"mix": "affine"},
    "no periods": {"num_periods": 0, "max_position": 0},
    "point": {"quantiles": ()},
    "covariates": {"n_futr": 2, "n_hist": 1, "n_static": 3},
    "window": {"norm": "window", "input_len": 64},
}
WHOLE = 80


def made(kind: str) -> RimerModel:
    """A model whose zeros are drawn, so that every part of it matters."""
    model = RimerModel(**SMALL, **KINDS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    model.fit_closed_form([torch.randn(3, 200).cumsum(1)])
    return model


def batch(model: RimerModel, steps: int = WHOLE, ahead: int = 40) -> Series:
    """Six series: gaps, a late first value, a constant, nothing at all; values around 100."""
    draw = torch.Generator().manual_seed(1)
    values = 100 + torch.randn(6, steps, generator=draw, dtype=torch.float64).cumsum(1)
    observed = torch.rand(6, steps, generator=draw) > 0.2
    values[2], observed[3, :20], observed[4], observed[5] = 7.0, False, False, True
    periods = torch.zeros(6, max(model.num_periods, 1), dtype=torch.int64)
    periods[:, 0] = torch.tensor([7, 12, 0, 24, 7, 30])
    if model.num_periods > 1:
        periods[1, 1] = 24

    def drawn(*shape: int) -> Tensor | None:
        return torch.randn(6, *shape, generator=draw) if shape[-1] else None

    start = torch.tensor([3, 0, 5, 7, 1, 100])
    return Series(
        values.masked_fill(~observed, 0.0), observed, start, periods[:, : model.num_periods],
        drawn(steps + ahead, model.n_futr), drawn(steps, model.n_hist), drawn(model.n_static),
    )  # fmt: skip


def streamed(model: Forecaster, series: Series, cuts: list[int]) -> Stream:
    """The stream after reading up to the last cut, in pieces."""
    stream, begin = model.start(series.periods, series.start, series.static), 0
    for end in cuts:
        covariates = (None if x is None else x[:, begin:end] for x in (series.futr, series.hist))
        values, observed = series.values[:, begin:end], series.observed[:, begin:end]
        stream = model.update(stream, values, observed, None, *covariates)
        begin = end
    return stream


def ahead(series: Series, begin: int, h: int) -> Tensor | None:
    return None if series.futr is None else series.futr[:, begin : begin + h]


def close(one: Tensor, other: Tensor) -> None:
    """Equal to 1e-5 of the series' spread."""
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5, equal_nan=True)


def close_states(one: Stream, other: Stream) -> None:
    for (name, a), (_, b) in zip(one.named_tensors(), other.named_tensors(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "window"])
def test_a_stream_forecasts_what_the_whole_series_does(kind: str) -> None:
    model = made(kind)
    series = batch(model)
    whole = model(series.first(WHOLE))
    z = whole.last(WHOLE, 16)
    expected = model.denormalise(z, whole.loc[:, -1, :, None], whole.scale[:, -1, :, None])
    found = model.forecast(streamed(model, series, [WHOLE]), 16, ahead(series, WHOLE, 16))
    assert found[4].isnan().all()
    keep = [0, 1, 2, 3, 5]
    close(found[keep], expected[keep])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("length", [WHOLE, 77, 5])
def test_updates_in_any_pieces_equal_reading_at_once(kind: str, length: int) -> None:
    model = made(kind)
    series = batch(model)
    once = streamed(model, series, [length])
    cuts = [cut for cut in (1, 2, 13, 16, 30, 61) if cut < length]
    pieces = streamed(model, series, [*cuts, length])
    close_states(pieces, once)
    h = 37  # beyond what one token predicts
    close(model.forecast(pieces, h, ahead(series, length, h)), model.forecast(once, h, ahead(series, length, h)))


@pytest.mark.parametrize("kind", ["plain", "ridge", "halfway", "affine", "point"])
@pytest.mark.parametrize("begun", range(1, 8))
def test_a_step_ahead_is_the_same_to_the_readout_wherever_in_a_patch_a_series_ends(kind: str, begun: int) -> None:
    model = made(kind)
    for parameter in (*model.embed.parameters(), *model.backbone.parameters()):  # these do see where a patch begins
        torch.nn.init.zeros_(parameter)
    series = batch(model).first(40)
    late = series._replace(
        values=torch.nn.functional.pad(series.values, (begun, 0)), start=series.start - begun,
        observed=torch.nn.functional.pad(series.observed, (begun, 0)),
    )  # fmt: skip
    h = 13  # what both say in one go
    whole, part = streamed(model, series, [40]), streamed(model, late, [40 + begun])
    close(model.forecast(part, h), model.forecast(whole, h))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_token_alone_is_the_last_of_all(kind: str) -> None:
    model = made(kind)
    series = batch(model).first(WHOLE)
    whole, last = model(series), model(series, last=True)
    assert last.z.shape[1] == 1
    for one, other in zip(last, whole, strict=True):
        close(one, other[:, -1:])


@pytest.mark.parametrize("kind", ["plain", "hybrid", "covariates"])
def test_some_rows_at_a_time_are_all_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(kind)
    series = batch(model)
    once = streamed(model, series, [20, WHOLE])
    monkeypatch.setattr("apps.timeseries.model._TOKENS_AT_A_TIME", 2 * 10)
    parts, forward = [], model.backbone.forward

    def counted(x: Tensor, *given: Any, **options: Any) -> Any:
        parts.append(len(x))
        return forward(x, *given, **options)

    monkeypatch.setattr(model.backbone, "forward", counted)
    pieces = streamed(model, series, [20, WHOLE])
    assert parts == [6, 2, 2, 2]
    close_states(pieces, once)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_series_alone_and_in_a_batch_of_other_lengths_is_the_same(kind: str) -> None:
    model = made(kind)
    series = batch(model)
    lengths = torch.tensor([80, 77, 3, 41, 16, 9])
    empty = model.start(series.periods, series.start, series.static)
    futr = ahead(series, 0, WHOLE)
    together = model.update(empty, series.values, series.observed, lengths, futr, series.hist)
    known = None
    if series.futr is not None:
        known = torch.stack([series.futr[i, n : n + 20] for i, n in enumerate(lengths)])
    found = model.forecast(together, 20, known)
    for i, n in enumerate(lengths.tolist()):
        alone = streamed(model, series, [n]).select([i])
        close(found[i : i + 1], model.forecast(alone, 20, None if known is None else known[i : i + 1]))


@pytest.mark.parametrize("kind", ["plain", "attention", "covariates", "ridge", "affine"])
def test_the_future_never_changes_a_forecast(kind: str) -> None:
    model = made(kind)
    series = batch(model)
    before = model(series.first(WHOLE))
    changed = series._replace(
        values=torch.cat((series.values[:, :40], 1e3 * torch.rand(6, 40, dtype=torch.float64)), dim=1),
        observed=torch.cat((series.observed[:, :40], ~series.observed[:, 40:]), dim=1),
    )
    after = model(changed.first(WHOLE))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :5], other[:, :5])
        assert not torch.equal(one[:, 5:], other[:, 5:])


@pytest.mark.parametrize("kind", ["plain", "attention", "window"])
def test_quantiles_never_cross_and_any_horizon_is_a_beginning_of_a_longer_one(kind: str) -> None:
    model = made(kind)
    series = batch(model)
    stream = streamed(model, series, [77])
    longest = model.forecast(stream, 61)
    assert longest.shape == (6, 61, 21)
    assert not (longest.diff(dim=-1) < 0).any()
    for h in (1, 16, 17):
        close(model.forecast(stream, h), longest[:, :h])


def test_constants_stay_constant_and_late_or_missing_values_do_no_harm() -> None:
    model = made("plain")
    found = model.forecast(streamed(model, batch(model), [77]), 20)
    torch.testing.assert_close(found[2], torch.full_like(found[2], 7.0), atol=0.01, rtol=0)
    assert found[[0, 1, 2, 3, 5]].isfinite().all()


def test_a_forecast_leaves_the_stream_as_it_was(tmp_path: Any) -> None:
    model = made("plain")
    stream = streamed(model, batch(model), [77])
    before = {name: x.clone() for name, x in stream.named_tensors()}
    first = model.forecast(stream, 30)
    for name, x in stream.named_tensors():
        assert torch.equal(x, before[name])
    stream.save(tmp_path / "stream.safetensors")
    assert torch.equal(
        model.forecast(Stream.load(tmp_path / "stream.safetensors"), 30).nan_to_num(), first.nan_to_num()
    )


def test_a_file_that_is_no_stream_is_refused(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot read a forecaster's stream"):
        Stream.load(tmp_path / "x")


def test_a_stream_of_rwkv7_stays_as_large_as_it_is_and_a_cache_grows() -> None:
    for kind, grows in (("plain", False), ("attention", True)):
        model = made(kind)
        series = batch(model)
        assert (streamed(model, series, [40, 80]).size > streamed(model, series, [40]).size) is grows


def test_halfway_is_the_mean_of_network_and_ridge_outside_training() -> None:
    model = made("halfway")
    series = batch(model)
    halfway = model(series.first(WHOLE))
    model.halfway = False
    model.ridge, ridge = None, model.ridge
    alone = model(series.first(WHOLE))
    assert ridge is not None
    middle = model.quantiles.index(0.5)
    row = 5  # without gaps
    window = series.values[row, WHOLE - 32 : WHOLE]
    linear = apply(ridge.weight, window)
    loc, scale = halfway.loc[row, -1], halfway.scale[row, -1]
    wanted = (alone.z[row, -1, :16, middle] + model.normalise(linear, loc, scale)) / 2
    torch.testing.assert_close(halfway.z[row, -1, :16, middle], wanted, atol=1e-5, rtol=1e-5)
    spread = alone.z[row, -1].diff(dim=-1)
    torch.testing.assert_close(halfway.z[row, -1].diff(dim=-1), spread, atol=1e-5, rtol=1e-5)
    assert torch.equal(halfway.z[row, 2], alone.z[row, 2])  # 24 steps: too few for the ridge


def test_gradients_reach_every_parameter() -> None:
    model = made("covariates").train()
    series = batch(model)
    model(series.first(WHOLE)).z.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mixers_have_equal_parameters() -> None:
    ours, twin = (count_parameters(RimerModel(mixer=mixer)) for mixer in ("rwkv7", "attention"))
    assert twin == pytest.approx(ours, rel=0.005)
    assert 1e6 < ours < 4e6


def test_stacked_series_and_first_steps() -> None:
    one = Series(
        torch.zeros(5).double(), torch.ones(5).bool(), torch.tensor(1), torch.tensor([7]), futr=torch.ones(8, 2)
    )
    both = stack([one, one])
    assert both.values.shape == (2, 5)
    assert both.first(3).futr is both.futr
    assert both.first(3).observed.shape == (2, 3)
    assert both.hist is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "rimmer"}, "There is no forecaster 'rimmer'.*rimer"),
        ({"patchlen": 3}, "has no option 'patchlen'.*patch_len"),
        ({"patch_len": 7}, "output_len must be a multiple of patch_len, got 96 and 7"),
        ({"norm": "revin"}, "norm is 'revin'; expected one of causal, window, none"),
        ({"norm": "window"}, "needs input_len"),
        ({"ridge": True}, "needs input_len"),
        ({"ridge": "average"}, "ridge is 'average'; expected false, path or mean"),
        ({"input_len": 100}, "input_len must be a multiple"),
        ({"dim": 100}, "multiple of head_dim"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(options)


def test_series_that_do_not_fit_are_refused() -> None:
    model = made("plain")
    series = batch(model)
    with pytest.raises(ValueError, match="have 77 steps; a multiple of patch_len 8"):
        model(series.first(77))
    with pytest.raises(ValueError, match="h is 0"):
        model.forecast(streamed(model, series, [8]), 0)
    with_covariates = made("covariates")
    with pytest.raises(ValueError, match="0 covariates known ahead .futr. were given, the model has 2"):
        with_covariates(series.first(WHOLE))
    with pytest.raises(ValueError, match="3 static covariates"):
        with_covariates.start(series.periods, series.start)
    stream = streamed(with_covariates, batch(with_covariates), [77])
    with pytest.raises(ValueError, match="for all 9 steps"):
        with_covariates.forecast(stream, 9, torch.zeros(6, 3, 2))


def test_an_affine_mixture_begins_as_a_convex_one_and_goes_beyond_the_paths() -> None:
    torch.manual_seed(0)
    readout = Readout(8, 4, 3, (), mix="affine")
    x = torch.randn(2, 5, 8)
    available = torch.tensor([True, False]).expand(2, 5, 2)
    shares = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(readout._weights(x, available), shares[:, None].expand(2, 5, 3, 4))
    assert readout.beyond is not None
    torch.nn.init.normal_(readout.beyond.weight)
    weights = readout._weights(x, available)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 5, 4))
    assert (weights[:, :, 2] == 0).all(), "a path that does not exist gets no weight"
    assert weights.min() < 0 < 1 < weights.max()
    with pytest.raises(ValueError, match="mix is 'other'"):
        Readout(8, 4, 3, (), mix="other")
