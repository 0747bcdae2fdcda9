"""Statistics so far: NumPy's on every prefix, in any pieces; constants, first values and forgetting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from apps.timeseries.normalise import Running, running, window_statistics


def sample(tokens: int = 6, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    values = 1e6 + torch.randn(3, tokens, size, dtype=torch.float64)
    visible = torch.rand(3, tokens, size) > 0.4
    visible[0, 0] = False
    return values, visible


def test_every_prefix_has_numpy_s_mean_and_deviation() -> None:
    values, visible = sample()
    loc, scale = running(values, visible, Running.start(3)).loc_scale()
    for row in range(3):
        for token in range(1, 6):
            seen = values[row, : token + 1][visible[row, : token + 1]].numpy()
            assert float(loc[row, token]) == pytest.approx(seen.mean(), rel=1e-12)
            assert float(scale[row, token]) == pytest.approx(max(seen.std(), 1e-6 * seen.mean()), rel=1e-6)


@pytest.mark.parametrize("halflife", [None, 7.0])
def test_pieces_give_what_the_whole_gives(halflife: float | None) -> None:
    values, visible = sample(7)
    whole = running(values, visible, Running.start(3), halflife)
    past, parts = Running.start(3), []
    for begin, end in ((0, 1), (1, 4), (4, 7)):
        piece = running(values[:, begin:end], visible[:, begin:end], past, halflife)
        parts.append(piece)
        past = Running(*(part[:, -1] for part in piece))
    for name, one in whole._asdict().items():
        if name != "shift":  # before the first value it may be anything
            torch.testing.assert_close(torch.cat([getattr(p, name) for p in parts], dim=1), one, atol=1e-9, rtol=1e-12)


def test_a_halflife_weighs_steps_by_their_age() -> None:
    values = torch.randn(1, 4, 3, dtype=torch.float64)
    visible = torch.ones_like(values, dtype=torch.bool)
    loc, scale = running(values, visible, Running.start(1), halflife=2.0).loc_scale()
    weights = 0.5 ** (np.arange(11, -1, -1) / 2.0)
    flat = values.flatten().numpy()
    mean = np.average(flat, weights=weights)
    assert float(loc[0, -1]) == pytest.approx(mean)
    assert float(scale[0, -1]) == pytest.approx(math.sqrt(np.average((flat - mean) ** 2, weights=weights)))


def test_constants_and_nothing_at_all_are_guarded() -> None:
    values = torch.tensor([[[250.0, 250.0]], [[0.0, 0.0]], [[5.0, 5.0]]], dtype=torch.float64)
    visible = torch.tensor([[[True, True]], [[True, True]], [[False, False]]])
    loc, scale = running(values, visible, Running.start(3)).loc_scale()
    assert loc.flatten().tolist() == [250.0, 0.0, 0.0]
    assert scale.flatten().tolist() == pytest.approx([250e-6, 1e-12, 1.0])


def test_window_statistics_are_those_of_the_whole_window_at_every_patch() -> None:
    values, visible = sample()
    loc, _ = window_statistics(values, visible).loc_scale()
    assert loc.shape == (3, 6)
    assert float(loc[1, 0]) == float(loc[1, -1]) == pytest.approx(float(values[1][visible[1]].mean()), rel=1e-12)
