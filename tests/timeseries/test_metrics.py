"""The errors against utilsforecast's and plain NumPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from utilsforecast import losses

from apps.timeseries.metrics import ForecastErrors, pinball, point_of, quantile_at

LEVELS = (0.025, 0.1, 0.3, 0.5, 0.7, 0.9, 0.975)
ROWS, HORIZON = 6, 8


@pytest.fixture
def forecasts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantiles (B, h, Q) that do not cross, targets (B, h), scales (B,)."""
    quantiles = (3 * torch.randn(ROWS, HORIZON, len(LEVELS), dtype=torch.float64)).sort(-1).values + 5
    return quantiles, 3 * torch.randn(ROWS, HORIZON, dtype=torch.float64) + 5, 1 + torch.rand(ROWS).double()


def as_frame(quantiles: torch.Tensor, target: torch.Tensor) -> pd.DataFrame:
    columns = {"unique_id": np.repeat(np.arange(ROWS), HORIZON), "y": target.flatten().numpy()}
    return pd.DataFrame(columns | {f"q{level}": quantiles[..., i].flatten().numpy() for i, level in enumerate(LEVELS)})


def errors(
    forecast: torch.Tensor, target: torch.Tensor, observed: torch.Tensor, scale: torch.Tensor
) -> dict[str, float]:
    metric = ForecastErrors(LEVELS)
    for rows in (slice(0, 2), slice(2, None)):  # in two batches: sums must not be means of means
        metric.update(forecast[rows], target[rows], observed[rows], scale[rows])
    return {name: float(value) for name, value in metric.compute().items()}


def test_errors_are_utilsforecasts(forecasts: tuple[torch.Tensor, ...]) -> None:
    quantiles, target, scale = forecasts
    found = errors(quantiles, target, torch.ones_like(target, dtype=torch.bool), scale)
    frame = as_frame(quantiles, target)
    assert found["mse"] == pytest.approx(losses.mse(frame, ["q0.5"])["q0.5"].mean(), rel=1e-6)
    absolute = losses.mae(frame, ["q0.5"]).set_index("unique_id")["q0.5"].to_numpy()
    assert found["mae"] == pytest.approx(absolute.mean(), rel=1e-6)
    assert found["mase"] == pytest.approx((absolute / scale.numpy()).mean(), rel=1e-6)
    sums = [losses.quantile_loss(frame, {"m": f"q{level}"}, q=level)["m"].mean() for level in LEVELS]
    weighted = 2 * np.mean(sums) / frame["y"].abs().mean()
    assert found["wql"] == pytest.approx(weighted, rel=1e-6)
    for percent, low, high in ((80, 0.1, 0.9), (95, 0.025, 0.975)):
        frame = frame.rename(columns={f"q{low}": f"m-lo-{percent}", f"q{high}": f"m-hi-{percent}"})
        covered = losses.coverage(frame, ["m"], percent)["m"].mean()
        assert found[f"coverage_{percent}"] == pytest.approx(covered)


def test_missing_steps_and_scales_do_not_count(forecasts: tuple[torch.Tensor, ...]) -> None:
    quantiles, target, scale = forecasts
    observed = torch.rand(ROWS, HORIZON) < 0.7
    observed[4] = False
    scale[1] = torch.nan
    spoiled = torch.where(observed, target, torch.nan)
    found = errors(quantiles, spoiled, observed, scale)
    error = (quantiles[..., 3] - target).abs().numpy()
    seen = observed.numpy()
    assert found["mae"] == pytest.approx(error[seen].mean(), rel=1e-6)
    means = [error[i][seen[i]].mean() / float(scale[i]) for i in (0, 2, 3, 5)]
    assert found["mase"] == pytest.approx(np.mean(means), rel=1e-6)
    assert all(np.isfinite(value) for value in found.values())


def test_a_point_forecast_is_all_its_quantiles(forecasts: tuple[torch.Tensor, ...]) -> None:
    """Its weighted quantile loss is then sum |error| / sum |y|, as for levels that lie evenly about one half."""
    quantiles, target, scale = forecasts
    point = quantiles[..., :1]
    metric = ForecastErrors(())
    metric.update(point, target, torch.ones_like(target, dtype=torch.bool), scale)
    found = metric.compute()
    assert "coverage_80" not in found
    expected = (point[..., 0] - target).abs().sum() / target.abs().sum()
    assert float(found["wql"]) == pytest.approx(float(expected), rel=1e-6)


def test_mean_and_median_of_a_normal_distribution() -> None:
    levels = tuple(np.linspace(0.005, 0.995, 199).tolist())
    normal = torch.distributions.LogNormal(torch.tensor(0.0), torch.tensor(0.5))
    quantiles = normal.icdf(torch.tensor(levels))
    assert float(point_of(quantiles, levels)) == pytest.approx(1.0, abs=1e-5)
    assert float(point_of(quantiles, levels, "mean")) == pytest.approx(np.exp(0.125), abs=0.01)
    assert float(point_of(quantiles[:1], ())) == quantiles[0]


def test_levels_between_are_interpolated() -> None:
    quantiles = torch.tensor([1.0, 2.0, 4.0])
    assert float(quantile_at(quantiles, (0.1, 0.5, 0.9), 0.5)) == 2
    assert float(quantile_at(quantiles, (0.1, 0.5, 0.9), 0.6)) == 2.5
    assert float(quantile_at(quantiles, (0.1, 0.5, 0.9), 0.1)) == 1


def test_pinball_by_hand() -> None:
    loss = pinball(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]), torch.tensor([0.1, 0.9]))
    assert loss.tolist() == [[pytest.approx(0.1), pytest.approx(0.1)]]


def test_intervals_beyond_the_levels_are_not_measured() -> None:
    assert set(ForecastErrors((0.1, 0.5, 0.9)).intervals) == {80}
    assert set(ForecastErrors((0.2, 0.5, 0.8)).intervals) == set()
