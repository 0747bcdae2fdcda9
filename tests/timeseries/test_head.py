"""Quantiles that rise whatever the weights, and a start at the normal distribution's."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from apps.timeseries.head import LEVELS, QuantileHead, checked_levels
from apps.timeseries.readout import Readout


def test_there_are_21_levels_around_the_median_and_the_usual_intervals_among_them() -> None:
    assert len(LEVELS) == 21
    for bound in (0.025, 0.05, 0.1, 0.25, 0.5):
        assert bound in LEVELS
        assert round(1 - bound, 3) in LEVELS


def test_quantiles_never_cross() -> None:
    head = QuantileHead(8, 5)
    torch.nn.init.normal_(head.out.weight, std=30.0)
    found = head(torch.randn(200, 8), torch.randn(200, 5))
    assert found.shape == (200, 5, 21)
    assert (found.diff(dim=-1) >= 0).all()


def test_it_starts_at_the_centre_with_the_normal_s_spread() -> None:
    centre = torch.randn(3, 5)
    found = QuantileHead(8, 5)(torch.randn(3, 8), centre)
    torch.testing.assert_close(found[..., LEVELS.index(0.5)], centre)
    spread = torch.tensor([0.5 * NormalDist().inv_cdf(level) for level in LEVELS])
    torch.testing.assert_close(found - centre[..., None], spread.expand(3, 5, 21), atol=1e-5, rtol=1e-5)


def test_a_point_head_is_one_number_a_slot() -> None:
    assert QuantileHead(8, 5, ())(torch.randn(3, 8), torch.zeros(3, 5)).shape == (3, 5, 1)


@pytest.mark.parametrize("levels", [[0.1, 0.9], [0.5, 0.1], [0.0, 0.5], [0.5, 0.5]])
def test_levels_that_make_no_sense_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="rising levels between 0 and 1 with 0.5 among them"):
        checked_levels(levels)


def test_the_readout_starts_as_the_average_of_the_paths_that_exist() -> None:
    paths = torch.randn(2, 3, 5, 4)
    available = torch.tensor([True, True, False, True]).expand(2, 3, 4).clone()
    readout = Readout(8, 5, 5, ())
    found = readout(torch.randn(2, 3, 8), paths, available)[..., 0]
    expected = paths[..., [0, 1, 3]].sum(-1) / 4  # and the level, 0
    torch.testing.assert_close(found, expected)
