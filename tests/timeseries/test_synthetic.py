"""Synthetic processes against what they are said to be: covariances, recurrences, seasons; and all of them sane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from apps.timeseries.synthetic import draw, events, kernels, processes, recipe, seasons, trends
from apps.timeseries.synthetic.rhythms import IRREGULAR, RHYTHMS, draw_history, draw_rhythm

PERIODS = [(), (4,), (12,), (24, 168)]


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize(
    "covariance",
    [
        lambda lag: kernels.rbf(lag, 5.0),
        lambda lag: kernels.exponential(lag, 8.0),
        lambda lag: kernels.rbf(lag, 12.0) * kernels.periodic(lag, 12.0, 1.0) + 0.5 * kernels.white(lag),
    ],
)
def test_circulant_paths_have_the_covariance_asked_for(covariance) -> None:
    n = 60
    expected = covariance(np.arange(kernels.circle(n, [12]) + 1.0))
    rng = generator(0)
    paths = np.stack([kernels.draw_stationary(rng, expected, n) for _ in range(8000)])
    found = np.array([(paths[:, : n - lag] * paths[:, lag:]).mean() for lag in range(n)])
    assert np.abs(found - expected[:n]).max() < 0.05
    assert np.abs(paths.mean(0)).max() < 0.06


def test_kernels_are_covariances() -> None:
    lag = np.abs(np.arange(40.0)[:, None] - np.arange(40.0))
    for matrix in (
        kernels.rbf(lag, 4.0), kernels.rational_quadratic(lag, 4.0, 0.5), kernels.periodic(lag, 7.0, 0.7),
        kernels.exponential(lag, 4.0), kernels.white(lag),
    ):  # fmt: skip
        assert np.allclose(np.diag(matrix), 1.0)
        assert np.linalg.eigvalsh(matrix).min() > -1e-8


def test_a_periodic_path_repeats_itself() -> None:
    covariance = kernels.periodic(np.arange(kernels.circle(96, [12]) + 1.0), 12.0, 0.8)
    path = kernels.draw_stationary(generator(3), covariance, 96)
    assert path.std() > 0.1
    assert np.allclose(path[12:], path[:-12], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- processes


def test_moving_season_is_its_recurrence() -> None:
    errors = generator(1).standard_normal(50)
    found = processes._moving_season(generator(2), errors, 7, 0.3)
    expected = found[:7].tolist()
    for t in range(7, 50):
        expected.append(expected[t - 7] + 0.3 * errors[t - 7])
    assert np.allclose(found, expected)


def test_recurrence_step_by_step() -> None:
    rng = generator(4)
    steps, forward, back = rng.standard_normal(30), [1.0, 0.4], [1.0, -0.7, 0.2]
    expected: list[float] = []
    for t, x in enumerate(steps):
        last = [expected[t - i] if t >= i else 0.0 for i in (1, 2)]
        expected.append(x + 0.4 * (steps[t - 1] if t else 0.0) + 0.7 * last[0] - 0.2 * last[1])
    assert np.allclose(processes.recur(forward, back, steps), expected)


def test_arima_polynomials_are_stationary() -> None:
    for seed in range(200):
        polynomial = processes._polynomial(generator(seed), seed % 4)
        assert len(polynomial) == seed % 4 + 1
        if len(polynomial) > 1:
            assert np.abs(np.roots(polynomial)).max() < 1.0
            assert np.abs(lfilter([1.0], polynomial, np.eye(1, 3000)[0])[-1]) < 1e-6


def test_noise_has_unit_size() -> None:
    sizes = [processes.noise(generator(seed), 4000).std() for seed in range(60)]
    assert 0.8 < np.median(sizes) < 1.3


def test_intermittent_demand_is_whole_and_mostly_nothing() -> None:
    drawn = [processes.intermittent(generator(seed), 300, ()) for seed in range(80)]
    assert all((path >= 0).all() and (path == np.round(path)).all() for path in drawn)
    assert np.mean([(path == 0).mean() for path in drawn]) > 0.5


def test_counts_are_counts() -> None:
    path = processes.counts(generator(5), 400, (12,))
    assert (path >= 0).all()
    assert (path == np.round(path)).all()


@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("process", [row[0] for row in recipe.PROCESSES], ids=lambda p: p.__name__)
def test_every_process_gives_finite_series_of_any_length(process, periods) -> None:
    for seed, n in enumerate((7, 20, 61, 400)):
        for again in range(8):
            path = process(generator(seed, again), n, periods)
            assert path.shape == (n,)
            assert path.dtype == np.float64
            assert np.isfinite(path).all()
            assert np.abs(path).max() < 1e9


# ------------------------------------------------------------------------------------------------- trends and seasons


@pytest.mark.parametrize("trend", trends.TRENDS, ids=lambda t: t.__name__)
def test_trends_are_centred_and_of_unit_size(trend) -> None:
    for seed in range(10):
        path = trend(generator(seed), 150)
        assert abs(path.mean()) < 1e-9
        assert path.std() == pytest.approx(0.0 if trend is trends.still else 1.0)


@pytest.mark.parametrize("period", [2, 4, 7, 12, 24, 52, 168, 365])
def test_profiles_are_one_centred_cycle(period) -> None:
    for seed in range(40):
        profile = seasons.draw_profile(generator(seed), period)
        assert profile.shape == (period,)
        assert abs(profile.mean()) < 1e-9
        assert profile.std() == pytest.approx(1.0, abs=1e-6)


def test_seasons_return() -> None:
    """The period explains most of a season, other lags do not; some seasons change and are allowed to."""
    alike = []
    for seed in range(60):
        path = seasons.season(generator(seed), 480, 24)
        alike.append(np.corrcoef(path[24:], path[:-24])[0, 1])
    assert np.median(alike) > 0.95
    assert min(alike) > 0.2


def test_weeks_know_days_off() -> None:
    week = seasons.week_of_days(generator(0), 7 * 24 * 4, 24)
    assert np.allclose(week[168:], week[:-168])
    assert not np.allclose(week[24:], week[:-24], atol=0.05)


# ------------------------------------------------------------------------------------------------------------- events


def test_events_do_what_they_say() -> None:
    values = generator(9).standard_normal(500)
    for seed in range(20):
        rng = generator(seed)
        changed = events.spikes(rng, values) != values
        assert changed.mean() < 0.06
        moved = events.shift(rng, values) - values
        assert len(np.unique(np.round(moved, 9))) <= 2
        cut = events.limits(rng, values)
        assert ((cut == values) | (cut == cut.max()) | (cut == cut.min())).all()
        steps = np.diff(np.unique(events.rounding(rng, values)))
        assert np.allclose(steps / steps.min(), np.round(steps / steps.min()), atol=1e-6)
        assert events.gaps(rng, 500).mean() > 0.5


# ------------------------------------------------------------------------------------------------------------- series


@pytest.mark.parametrize("context", [32, 128, 1024])
def test_drawn_series(context) -> None:
    lengths, told = [], 0
    for seed in range(150):
        drawn = draw(generator(seed), context, 32)
        assert drawn.values.shape == drawn.observed.shape == (context + 32,)
        assert np.isfinite(drawn.values).all()
        assert (drawn.values[~drawn.observed] == 0).all()
        assert not drawn.observed[drawn.history + 32 :].any()
        assert drawn.observed[: drawn.history + 32].mean() > 0.3
        assert drawn.start >= 0
        assert drawn.periods.shape == (2,)
        lengths.append(drawn.history)
        told += drawn.periods[0] > 0
    assert max(lengths) <= context
    assert min(lengths) < context / 2
    assert len(set(lengths)) > 8
    assert 20 < told < 140


def test_the_same_numbers_give_the_same_series() -> None:
    one, two, other = draw(generator(1, 2), 64, 16), draw(generator(1, 2), 64, 16), draw(generator(1, 3), 64, 16)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.values, other.values)


def test_only_named_rhythms() -> None:
    for seed in range(40):
        assert set(draw(generator(seed), 128, 16, ["monthly"]).periods.tolist()) <= {0, 12}


def test_rhythms_fit_their_contexts() -> None:
    rng = generator(0)
    short = {draw_rhythm(rng, 128).name for _ in range(400)}
    long = {draw_rhythm(rng, 1024).name for _ in range(400)}
    assert {"quarterly", "monthly", "weekly"} <= short
    assert "half-hourly" not in short
    assert {"hourly", "half-hourly", "weekly"} <= long
    assert "quarterly" not in long
    for rhythm in (*RHYTHMS, IRREGULAR):
        assert all(min(rhythm.least, 128) <= draw_history(rng, rhythm, 128) <= 128 for _ in range(50))
