"""Points, intervals and quantiles from a head's levels."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.timeseries.head import LEVELS
from apps.timeseries.quantiles import Wanted, interpolate
from core.errors import UserError


def rows(count: int = 50) -> np.ndarray:
    """Rising quantiles (count, 21), many of them tied or nearly so."""
    steps = np.random.default_rng(0).exponential(1.0, (count, len(LEVELS)))
    steps[:, ::3] = 0.0
    return 1e6 + np.cumsum(steps, axis=1) * 10.0 ** np.random.default_rng(1).integers(-12, 3, (count, 1))


def test_names_and_order_are_neuralforecasts() -> None:
    wanted = Wanted.of("Rimer", [80, 97.5, 95], None)
    assert wanted.names == (
        "Rimer-lo-97.5", "Rimer-lo-95", "Rimer-lo-80", "Rimer-hi-80", "Rimer-hi-95", "Rimer-hi-97.5",
    )  # fmt: skip
    assert wanted.quantiles == (0.0125, 0.025, 0.1, 0.9, 0.975, 0.9875)
    assert Wanted.of("R", None, [0.5, 0.1]).names == ("R_ql0.5", "R_ql0.1")
    assert Wanted.of("R", None, None) == Wanted()


def test_known_levels_are_handed_through_exactly() -> None:
    found = rows()
    np.testing.assert_array_equal(interpolate(found, LEVELS, LEVELS), found)
    chosen = [LEVELS[i] for i in (20, 0, 10)]
    np.testing.assert_array_equal(interpolate(found, LEVELS, chosen), found[:, [20, 0, 10]])


def test_between_levels_as_numpy_interpolates() -> None:
    found, wanted = rows(), [0.987, 0.011, 0.33, 0.5, 0.62]
    expected = np.stack([np.interp(wanted, LEVELS, row) for row in found])
    np.testing.assert_allclose(interpolate(found, LEVELS, wanted), expected, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=40, unique=True))
def test_quantiles_never_cross(wanted: list[float]) -> None:
    found = interpolate(rows(20), LEVELS, wanted)
    assert (np.diff(found[:, np.argsort(wanted)], axis=1) >= 0).all()


def test_median_and_mean() -> None:
    normal = NormalDist(3.0, 2.0)
    found = np.array([[normal.inv_cdf(level) for level in LEVELS], np.linspace(0, 5, len(LEVELS)) ** 3])
    assert Wanted().outputs("R", found, LEVELS, "median")["R"][0] == pytest.approx(3.0)
    means = Wanted().outputs("R", found, LEVELS, "mean")["R"]
    fine = np.linspace(0, 1, 200_001)
    expected = [np.interp(fine, LEVELS, row).mean() for row in found]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    assert means[0] == pytest.approx(3.0)
    np.testing.assert_array_equal(Wanted().outputs("R", found[:, :1], (), "mean")["R"], found[:, 0])


@pytest.mark.parametrize(
    ("level", "quantiles", "sentence"),
    [
        ([80], [0.1], "both given"),
        ([0], None, "level holds 0; numbers between 0 and 100"),
        ([120], None, "level holds 120"),
        (80, None, r"level is 80; a list.*\[80\]"),
        ([80, 80], None, "every number once"),
        (None, [1.0], "quantiles holds 1; numbers between 0 and 1"),
    ],
)
def test_wrong_levels(level: list[float] | None, quantiles: list[float] | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Wanted.of("R", level, quantiles)


def test_what_the_head_does_not_reach_is_refused() -> None:
    Wanted.of("R", [98], None).check(LEVELS)
    with pytest.raises(UserError, match=r"quantile 0.005 .*from 0.01 to 0.99, intervals up to level 98"):
        Wanted.of("R", [99], None).check(LEVELS)
    with pytest.raises(UserError, match="forecasts points alone"):
        Wanted.of("R", [80], None).check(())
