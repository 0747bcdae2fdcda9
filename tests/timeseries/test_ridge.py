"""The closed-form ridge: its moments against windows one by one, its solution against least squares, ETTh1's row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.timeseries.ett import read_long, windows
from apps.timeseries.ridge import Moments, apply, fit_ridge, moments, solve
from core.errors import UserError


def series(rows: int = 3, steps: int = 80) -> torch.Tensor:
    return torch.randn(rows, steps, dtype=torch.float64).cumsum(1)


def by_hand(x: torch.Tensor, input_len: int, output_len: int, centre: str, penalty: float) -> np.ndarray:
    """Ridge on the stacked design matrix, as least squares with rows appended for the penalty."""
    cut = np.concatenate([np.lib.stride_tricks.sliding_window_view(row, input_len + output_len) for row in x.numpy()])
    level = cut[:, input_len - 1 : input_len] if centre == "last" else cut[:, :input_len].mean(1, keepdims=True)
    inputs, targets = cut[:, :input_len] - level, cut[:, input_len:] - level
    unit = np.square(inputs).sum() / input_len  # the mean diagonal of inputs.T @ inputs
    extra = np.sqrt(penalty * unit) * np.eye(input_len)
    design = np.concatenate([inputs, extra])
    return np.linalg.lstsq(design, np.concatenate([targets, np.zeros((input_len, output_len))]), rcond=None)[0]


def test_moments_are_those_of_the_windows():
    x = series()
    cut = x.unfold(1, 13, 1).flatten(0, 1)
    found = moments(x, 13)
    assert found.windows == len(cut) == 3 * 68
    torch.testing.assert_close(found.matrix, cut.T @ cut)
    assert moments(x, 81).windows == 0


@pytest.mark.parametrize("centre", ["last", "mean"])
def test_solution_is_least_squares(centre):
    x, future = series(), series(2, 40)
    fit = fit_ridge([x], 8, 3, valid=[future], centres=[centre], penalties=[0.05])
    matrix = by_hand(x, 8, 3, centre, 0.05)
    window = torch.randn(5, 8, dtype=torch.float64)
    level = window[:, -1:] if centre == "last" else window.mean(1, keepdim=True)
    torch.testing.assert_close(fit.predict(window), (window - level) @ torch.from_numpy(matrix) + level)
    cut = future.unfold(1, 11, 1)
    error = (fit.predict(cut[..., :8]) - cut[..., 8:]).square().mean()
    assert fit.score == pytest.approx(float(error))


def test_centre_and_penalty_are_the_best_on_validation():
    x, future = series(2, 60), series(2, 60)
    tried = {
        (c, p): fit_ridge([x], 16, 4, valid=[future], centres=[c], penalties=[p]).score
        for c in ("last", "mean")
        for p in (1e-4, 1e-2, 1.0)
    }
    fit = fit_ridge([x], 16, 4, valid=[future], penalties=[1e-4, 1e-2, 1.0])
    assert (fit.centre, fit.penalty) == min(tried, key=lambda key: tried[key])


def test_level_is_passed_on():
    fit = fit_ridge([series()], 8, 3)
    window = torch.randn(2, 8)
    torch.testing.assert_close(fit.weight.sum(0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(fit.predict(window + 1e4), fit.predict(window) + 1e4, rtol=1e-6, atol=1e-2)
    assert fit.predict(window).dtype == torch.float32


def test_a_line_and_a_wave_are_continued():
    t = torch.arange(120, dtype=torch.float64)
    x = torch.stack((0.3 * t, torch.sin(t * 2 * torch.pi / 12)))
    fit = fit_ridge([x], 24, 6, scale=True, penalties=[1e-10])
    cut = x.unfold(1, 30, 1)
    torch.testing.assert_close(fit.predict(cut[..., :24]), cut[..., 24:], rtol=0, atol=1e-5)


def test_series_of_other_units_weigh_the_same():
    x, y = series(1, 200), series(1, 200)
    fit = fit_ridge([x, 1e6 * y], 8, 3, scale=True)
    torch.testing.assert_close(fit.weight, fit_ridge([1e3 * x, y], 8, 3, scale=True).weight)
    loud = fit_ridge([1e6 * y], 8, 3, penalties=[fit.penalty], centres=[fit.centre]).weight
    assert (fit.weight - loud).abs().max() > 1e-3


def test_the_held_out_end_takes_part_in_the_end():
    x = series(1, 100)
    fit = fit_ridge([x], 8, 3)
    full = solve(moments(x[:, :90], 11) + moments(x[:, 82:], 11), moments(x, 11), 8, (fit.centre,), (fit.penalty,))
    torch.testing.assert_close(fit.weight, full.weight)


def test_short_constant_and_no_series():
    fit = fit_ridge([torch.tensor([1.0, 2.0])], 8, 3)
    assert fit.weight.shape == (8, 3)
    assert fit.weight.isfinite().all()
    constant = fit_ridge([torch.full((50,), 3.0)], 8, 3)
    torch.testing.assert_close(constant.predict(torch.full((8,), 3.0)), torch.full((3,), 3.0))
    with pytest.raises(UserError, match="There is no series"):
        fit_ridge([], 8, 3)
    with pytest.raises(UserError, match="long enough"):
        solve(Moments(torch.zeros(11, 11), 0), moments(series(), 11), 8)
    with pytest.raises(ValueError, match=r"\(C, N\)"):
        moments(torch.zeros(5), 3)


def test_etth1_96(shared_data):
    table = read_long(shared_data("ett/ETTh1.csv"))
    x, (train, val, _) = table.scaled.T, table.borders
    fit = fit_ridge([x[:, :train]], 672, 96, valid=[x[:, train - 672 : val]])
    test = windows(table.scaled, table.origins("test", 672, 96), 672, 96)
    off = apply(fit.weight, test[..., :672]) - test[..., 672:]
    assert (float(off.square().mean()), float(off.abs().mean())) == pytest.approx((0.3646, 0.3930), abs=1e-3)
