"""The twins beside Rimer: each against its formula written down again, and all of them as streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.timeseries.dlinear import DLinear, moving_average
from apps.timeseries.model import build_model
from apps.timeseries.naive import SeasonalNaive
from apps.timeseries.one_window import OneWindowForecaster
from apps.timeseries.published import PublishedRimer
from apps.timeseries.ridge import Ridge, fit_ridge
from apps.timeseries.series import Series
from core.errors import UserError

TWINS = {
    "ridge": {},
    "dlinear": {"kernel": 5},
    "seasonal_naive": {},
    "published": {"dim": 64},
}


def series(rows: int = 3, steps: int = 24, periods: tuple[int, ...] = (6,), missing: float = 0.0) -> Series:
    values = torch.randn(rows, steps, dtype=torch.float64).cumsum(1) * 10 + 100
    observed = torch.rand(rows, steps) >= missing
    return Series(
        values.where(observed, 0.0),
        observed,
        torch.zeros(rows, dtype=torch.int64),
        torch.tensor(periods).expand(rows, -1),
    )


def twin(name: str, input_len: int = 24, output_len: int = 5) -> OneWindowForecaster:
    model = build_model({"name": name, "input_len": input_len, "output_len": output_len, **TWINS[name]})
    assert isinstance(model, OneWindowForecaster)
    if isinstance(model, Ridge):
        model.fit_closed_form([torch.randn(2, 200, dtype=torch.float64).cumsum(1)])
    for parameter in model.parameters():  # RWKV-7's output map starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def forecast(model: OneWindowForecaster, given: Series) -> torch.Tensor:
    out = model(given)
    return model.denormalise(out.z[:, -1], out.loc[:, -1, :, None], out.scale[:, -1, :, None])[..., 0]


# ---------------------------------------------------------------------------------------------------------- formulas


def test_seasonal_naive_repeats_the_last_season():
    given = series()
    found = forecast(SeasonalNaive(24, 15), given)
    torch.testing.assert_close(found, given.values[:, -6:].repeat(1, 3)[:, :15], rtol=0, atol=1e-4)


@pytest.mark.parametrize("periods", [(), (0,), (25,)])
def test_without_a_season_the_last_value_is_repeated(periods):
    given = series(periods=periods)
    found = forecast(SeasonalNaive(24, 4), given)
    torch.testing.assert_close(found, given.values[:, -1:].expand(-1, 4), rtol=0, atol=1e-4)


def test_the_second_season():
    given = series(periods=(6, 12))
    found = forecast(SeasonalNaive(24, 12, season=1), given)
    torch.testing.assert_close(found, given.values[:, -12:], rtol=0, atol=1e-4)


def test_dlinear_is_the_papers_decomposition():
    model = DLinear(40, 7, window_norm=False)
    given = series(steps=40)
    windows = given.values.numpy()
    padded = np.concatenate([np.repeat(windows[:, :1], 12, 1), windows, np.repeat(windows[:, -1:], 12, 1)], 1)
    trend = np.stack([np.convolve(row, np.ones(25) / 25, "valid") for row in padded])
    pairs = [
        (p.weight.detach().double().numpy(), p.bias.detach().double().numpy()) for p in (model.trend, model.remainder)
    ]
    expected = sum(part @ w.T + b for part, (w, b) in zip((trend, windows - trend), pairs, strict=True))
    np.testing.assert_allclose(forecast(model, given).detach().numpy(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moving_average(given.values, 25), torch.from_numpy(trend))


def test_dlinear_normalised_moves_with_its_window():
    model = twin("dlinear")
    given = series()
    moved = given._replace(values=given.values * 3 + 1000)
    torch.testing.assert_close(forecast(model, moved), forecast(model, given) * 3 + 1000, rtol=1e-5, atol=1e-3)


def test_published_rimer_has_the_published_parameters():
    model = PublishedRimer(32, 32)  # 1,317,376 time mix + 264,704 channel mix and norms + 32,800 in and out
    assert sum(p.numel() for p in model.parameters()) == 1_614_880
    assert sum(p.numel() for p in model.block.att.parameters()) == 1_317_376


def test_published_rimer_has_no_recurrence():
    """One token from an empty state: the state holds k v^T alone, so that y = v (k . r), whatever the decay."""
    model = PublishedRimer(24, 5, dim=64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = series()
    before = forecast(model, given)
    with torch.no_grad():
        for name in ("w0", "w1", "w2"):
            getattr(model.block.att, name).normal_()
    torch.testing.assert_close(forecast(model, given), before)


def test_ridge_is_its_matrix():
    rows = torch.randn(4, 100, dtype=torch.float64).cumsum(1)
    model = Ridge(24, 5, scale=False)
    given = series()
    torch.testing.assert_close(forecast(model, given), given.values[:, -1:].expand(-1, 5), rtol=0, atol=1e-4)
    model.fit_closed_form([rows])
    expected = fit_ridge([rows], 24, 5).predict(given.values)
    torch.testing.assert_close(forecast(model, given), expected, rtol=1e-5, atol=1e-3)
    assert not list(model.parameters())
    assert set(model.state_dict()) == {"weight"}


# ------------------------------------------------------------------------------------------------------ as forecasters


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_streams_equal_windows(name, missing):
    model = twin(name)
    given = series(missing=missing)
    expected = forecast(model, given)
    stream = model.start(given.periods, given.start)
    for begin, end in ((0, 5), (5, 6), (6, 24)):
        stream = model.update(stream, given.values[:, begin:end], given.observed[:, begin:end])
    found = model.forecast(stream, 5)
    assert found.shape == (3, 5, 1)
    torch.testing.assert_close(found[..., 0], expected, rtol=1e-5, atol=1e-4)
    longer = model.forecast(stream, 12)
    torch.testing.assert_close(longer[:, :5], found)
    assert longer.isfinite().all()


@pytest.mark.parametrize("name", TWINS)
def test_odd_series_give_finite_forecasts(name):
    given = series(rows=3)
    values, observed = given.values.clone(), given.observed.clone()
    values[0] = 5.0  # constant
    values[1], observed[1] = 0.0, False  # nothing
    observed[2, :20] = False  # short
    values[2, :20] = 0.0
    found = forecast(twin(name), given._replace(values=values, observed=observed))
    assert found.isfinite().all()
    if name != "published":
        assert (found[0] - 5.0).abs().max() < 1e-3


@pytest.mark.parametrize("name", TWINS)
def test_rows_do_not_see_each_other_and_windows_stand_alone(name):
    model = twin(name)
    given = series(rows=4, steps=48)
    out = model(given)
    assert out.z.shape == (4, 2, 5, 1)
    alone = model(Series(*(None if part is None else part[2:3] for part in given)))
    torch.testing.assert_close(alone.z, out.z[2:3], rtol=1e-5, atol=1e-5)
    later = model(given._replace(values=given.values[:, 24:], observed=given.observed[:, 24:]))
    torch.testing.assert_close(later.z[:, 0], out.z[:, 1], rtol=1e-5, atol=1e-5)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="multiple of input_len 24 was expected"):
        twin("ridge")(series(steps=25))
    with pytest.raises(UserError, match="kernel must be odd, got 4"):
        build_model({"name": "dlinear", "kernel": 4})
    with pytest.raises(UserError, match="season must be 0"):
        build_model({"name": "seasonal_naive", "season": -1})
    with pytest.raises(UserError, match="at least 1, got 0 and 96"):
        build_model({"name": "ridge", "input_len": 0})
    with pytest.raises(UserError, match="has no option 'kernels'; did you mean 'kernel'"):
        build_model({"name": "dlinear", "kernels": 25})
