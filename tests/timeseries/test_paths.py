"""Naive paths against loops written from their definition, and what they may not look at."""

from __future__ import annotations

import torch

from apps.timeseries.linear_path import RidgePath
from apps.timeseries.paths import LAGS, History, count, fill_forward, naive_paths


def by_hand(series: list[float], end: int, step: int, period: int, lag: int) -> float | None:
    """The seasonal naive forecast of `step` made at `end`, `lag` + 1 seasons back; None if it does not exist."""
    if period == 0 or end - (lag + 1) * period < 0:
        return None
    while step >= end:
        step -= period
    return series[step - lag * period]


def test_paths_are_what_loops_give() -> None:
    series = torch.randn(2, 30, dtype=torch.float64)
    periods = torch.tensor([[7, 0], [4, 12]])
    end = torch.tensor([[5, 10, 15, 29], [5, 10, 15, 29]])
    base = torch.tensor([[0, 5, 10, 25], [0, 5, 10, 25]])
    history = History(series, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
    found = naive_paths(history, end, base, 20, periods)
    assert found.values.shape == (2, 4, 20, count(2))
    for row in range(2):
        for token in range(4):
            last = float(series[row, end[row, token] - 1])
            assert found.values[row, token, :, 0].tolist() == [last] * 20
            for place, period in enumerate(periods[row].tolist()):
                for lag in range(LAGS):
                    k = 1 + place * LAGS + lag
                    for slot in range(20):
                        step = int(base[row, token]) + slot
                        if step - lag * period < 0 and period:
                            continue  # before the series: at the history's edge, and of no use
                        wanted = by_hand(series[row].tolist(), int(end[row, token]), step, period, lag)
                        assert bool(found.available[row, token, k]) == (wanted is not None)
                        assert float(found.values[row, token, slot, k]) == (last if wanted is None else wanted)


def test_gaps_are_filled_with_the_last_value() -> None:
    values = torch.tensor([[9.0, 1.0, 9.0, 9.0, 2.0]], dtype=torch.float64)
    observed = torch.tensor([[False, True, False, False, True]])
    assert fill_forward(values, observed, torch.tensor([7.0], dtype=torch.float64)).tolist() == [[7, 1, 1, 1, 2]]


def test_no_path_before_the_first_value() -> None:
    nothing = torch.full((1, 1), 10**6)
    history = History(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), nothing)
    found = naive_paths(history, torch.tensor([[0]]), torch.tensor([[0]]), 4, torch.tensor([[2]]))
    assert not found.available.any()


def test_the_ridge_path_continues_a_line_and_waits_for_its_window() -> None:
    line = torch.arange(60, dtype=torch.float64)[None]
    path = RidgePath(6, 4)
    history = History(line, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    end, base = torch.tensor([[5, 20]]), torch.tensor([[0, 15]])
    last = torch.zeros(1, 2, 9, dtype=torch.float64)
    assert not path(history, end, base, 9, last).available.any()  # not fitted yet
    path.fit([line + 3 * k for k in range(3)])
    found = path(history, end, base, 9, last)
    assert found.available[..., 0].tolist() == [[False, True]]
    torch.testing.assert_close(
        found.values[0, 1, :, 0], torch.arange(15.0, 24.0, dtype=torch.float64), atol=0.05, rtol=0
    )
    assert found.values[0, 1, :5, 0].tolist() == [15, 16, 17, 18, 19]  # what has been seen is itself
