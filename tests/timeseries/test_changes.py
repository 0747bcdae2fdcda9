"""Recent changes and the drift, against loops."""

from __future__ import annotations

import pytest
import torch

from apps.timeseries.changes import RECENT, drift_path, recent_changes
from apps.timeseries.head import QuantileHead
from apps.timeseries.paths import History


@pytest.fixture
def history() -> tuple[torch.Tensor, History, torch.Tensor, torch.Tensor]:
    values = torch.randn(2, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    end = torch.tensor([[3, 70], [1, 80]])
    low = torch.tensor([[0, 0], [0, 50]])
    return values, History(values, torch.zeros(2, dtype=torch.int64), low), end, torch.tensor([[7, 0], [12, 40]])


def test_changes_are_those_of_the_last_steps(history) -> None:
    values, known, end, periods = history
    found = recent_changes(known, end, periods, lambda y: y.float() / 2)
    assert found.size.shape == (2, 2, 3)
    for b in range(2):
        for t in range(2):
            for i, lag in enumerate((1, *periods[b].tolist())):
                last, low = int(end[b, t]) - 1, int(known.low[b, t])
                steps = [s for s in range(last, last - RECENT, -1) if s - lag >= low] if lag else []
                assert bool(found.known[b, t, i]) is bool(steps)
                if steps:
                    expected = sum(abs(values[b, s] - values[b, s - lag]).item() for s in steps) / len(steps) / 2
                    assert found.size[b, t, i].item() == pytest.approx(expected, rel=1e-5)
    smallest = found.size[1, 1][found.known[1, 1]].min()
    torch.testing.assert_close(found.unit[1, 1], smallest.clamp(max=1.0).sqrt())
    assert found.unit[1, 0] == 1.0, "one value alone has not changed"
    assert found.features.shape == (2, 2, 6)
    assert found.features.isfinite().all()


def test_drift_is_the_line_through_first_and_last(history) -> None:
    values, known, end, _ = history
    base = torch.tensor([[0, 64], [0, 72]])
    found = drift_path(known, end, base, 24)
    assert found.values.shape == (2, 2, 24, 1)
    slope = (values[1, 79] - values[1, 50]) / 29
    expected = values[1, 79] + slope * (torch.arange(72, 96) - 79)
    torch.testing.assert_close(found.values[1, 1, :, 0], expected)
    assert found.available[..., 0].tolist() == [[True, True], [False, True]]
    assert (found.values[1, 0] == values[1, 0]).all(), "without a second value there is no drift"


def test_units_scale_what_is_added_to_the_centre() -> None:
    head = QuantileHead(4, 3)
    torch.nn.init.normal_(head.out.weight)
    x, centre, unit = torch.randn(2, 5, 4), torch.randn(2, 5, 3), torch.rand(2, 5) + 0.1
    plain, counted = head(x, centre), head(x, centre, unit)
    torch.testing.assert_close(counted - centre[..., None], (plain - centre[..., None]) * unit[..., None, None])
    assert (counted.diff(dim=-1) > 0).all()
