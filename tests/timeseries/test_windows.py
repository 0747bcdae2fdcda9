"""Windows: what is cut, padded and hidden, held to plain loops over arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.timeseries.panel import Panel
from apps.timeseries.series import Series
from apps.timeseries.windows import Case, EvaluationWindows, TrainingWindows, join
from core.errors import UserError

LENGTHS = (30, 7, 55)


@pytest.fixture
def arrays() -> list[np.ndarray]:
    """Three series whose values name their place: 1000 x series + step; one gap."""
    found = [1000.0 * (number + 1) + np.arange(length) for number, length in enumerate(LENGTHS)]
    found[0][4] = np.nan
    return found


@pytest.fixture
def panel(arrays: list[np.ndarray]) -> Panel:
    futr = [np.stack([np.arange(len(a)), np.ones(len(a))], 1) for a in arrays]
    return Panel.of(arrays, names="abc", starts=[5, 0, -3], periods=[7, 4], futr=futr, static=np.eye(3)[:, :2])


def test_a_window_is_its_part_of_the_series(panel: Panel, arrays: list[np.ndarray]) -> None:
    window = panel.window(2, 10, 8)
    assert window.values.tolist() == arrays[2][10:18].tolist()
    assert window.observed.all()
    assert (int(window.start), window.periods.tolist()) == (7, [7, 4])
    gap = panel.window(0, 0, 6)
    assert gap.observed.tolist() == [True, True, True, True, False, True]
    assert gap.values[4] == 0


def test_a_short_series_is_padded_on_the_right_alone(panel: Panel, arrays: list[np.ndarray]) -> None:
    window = panel.window(1, 2, 10, ahead=3)
    assert window.values.tolist() == [*arrays[1][2:], 0, 0, 0, 0, 0]
    assert window.observed.tolist() == [True] * 5 + [False] * 5
    assert window.futr is not None
    assert window.futr.shape == (13, 2)
    assert window.futr[:, 1].tolist() == [1.0] * 5 + [0.0] * 8


def test_known_covariates_reach_ahead_but_values_do_not(panel: Panel) -> None:
    window = panel.window(2, 10, 8, end=14, ahead=5)
    assert window.observed.tolist() == [True] * 4 + [False] * 4
    assert not window.values[4:].any()
    assert window.futr is not None
    assert window.futr[:, 0].tolist() == list(range(10, 23))


def test_every_window_comes_once_in_an_epoch_of_all(panel: Panel) -> None:
    windows = TrainingWindows(panel, 12, torch.tensor([25, 7, 40]))
    found = [(int(w.values[w.observed][-1]) // 1000, int(w.start)) for w in (windows[i] for i in range(len(windows)))]
    assert found == [(1, 5 + s) for s in range(14)] + [(2, 0)] + [(3, s - 3) for s in range(29)]
    last = windows[len(windows) - 1]
    assert last.values[-1] == 3039
    thin = TrainingWindows(panel, 12, torch.tensor([25, 0, 40]), stride=5)
    assert [int(thin[i].start) for i in range(len(thin))] == [5, 10, 15, -3, 2, 7, 12, 17, 22]


def test_random_windows_are_a_function_of_the_seed_and_reach_every_place(panel: Panel) -> None:
    windows = TrainingWindows(panel, 12, torch.tensor([25, 7, 40]), per_epoch=10)
    assert len(windows) == 10
    torch.manual_seed(3)
    first = windows[0]
    torch.manual_seed(3)
    assert torch.equal(windows[7].values, first.values)
    places = [int(windows[0].values.max()) for _ in range(3000)]
    assert {place // 1000 for place in places} == {1, 2, 3}
    assert len(set(places)) == 14 + 1 + 29
    assert np.mean([place < 2000 for place in places]) == pytest.approx(14 / 44, abs=0.03)
    even = TrainingWindows(panel, 12, torch.tensor([25, 7, 40]), per_epoch=10, balance="series")
    counts = np.bincount([int(even[0].values.max()) // 1000 for _ in range(3000)])[1:]
    assert counts / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_no_training_window_touches_what_is_held_out(panel: Panel) -> None:
    ends = torch.tensor([20, 5, 40])
    windows = TrainingWindows(panel, 12, ends)
    seen = torch.cat([w.values[w.observed] for w in (windows[i] for i in range(len(windows)))])
    for number, end in enumerate(ends.tolist()):
        own = seen[(seen // 1000) == number + 1] % 1000
        assert own.max() == end - 1


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_evaluation_windows_are_those_of_a_plain_loop(panel: Panel, arrays: list[np.ndarray], stride: int) -> None:
    begins, ends, horizon, context = [18, 7, 10], [30, 7, 31], 4, 16
    windows = EvaluationWindows(
        panel, context, horizon, torch.tensor(begins), torch.tensor(ends), stride=stride, period=7
    )
    expected = []
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        origins = [] if begin == end else sorted(range(end - horizon, begin - 1, -stride))
        expected += [(number, origin) for origin in origins]
    assert [tuple(windows[i].place.tolist()) for i in range(len(windows))] == expected
    for index, (number, origin) in enumerate(expected):
        case, array = windows[index], arrays[number]
        length = int(case.length)
        assert length == min(origin, context)
        history = np.nan_to_num(array[origin - length : origin])
        assert case.history.values.tolist() == [*history, *[0.0] * (context - length)]
        assert case.target.tolist() == np.nan_to_num(array[origin : origin + horizon]).tolist()
        assert case.history.futr is not None
        assert len(case.history.futr) == context + horizon
        assert int(case.history.start) == int(panel.starts[number]) + origin - length


def test_the_scale_is_the_mean_seasonal_difference_before_the_forecast(panel: Panel, arrays: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    values[[3, 17]] = np.nan
    other = Panel.of([rng.normal(size=9), values, np.ones(20)])
    scales = other.seasonal_errors(5)
    for origin in (6, 21, 39):
        expected = np.nanmean(np.abs(values[5:origin] - values[: origin - 5]))
        assert float(scales[9 + origin]) == pytest.approx(expected)
    assert scales[9:14].isnan().all(), "no pair of values five steps apart yet"
    assert scales[9 + 40 :].isnan().all(), "a constant series has no scale"


def test_a_batch_knows_its_whole_windows(panel: Panel, arrays: list[np.ndarray]) -> None:
    windows = EvaluationWindows(panel, 16, 4, torch.tensor([3, 7, 40]), torch.tensor([30, 7, 55]), stride=8)
    batch = join([windows[i] for i in range(len(windows))])
    assert isinstance(batch, Case)
    whole = batch.whole()
    assert whole.values.shape == (len(windows), 20)
    for row, (number, origin) in enumerate(batch.place.tolist()):
        length = int(batch.length[row])
        part = arrays[number][origin - length : origin + 4]
        assert whole.values[row, : length + 4].tolist() == np.nan_to_num(part).tolist()
        assert whole.observed[row, : length + 4].tolist() == (~np.isnan(part)).tolist()
        assert not whole.observed[row, length + 4 :].any()
    assert batch.history.values.shape == (len(windows), 16), "the batch itself is not changed"


def test_training_windows_join_to_a_series(panel: Panel) -> None:
    windows = TrainingWindows(panel, 12, torch.tensor([25, 7, 40]))
    batch = join([windows[i] for i in range(5)])
    assert isinstance(batch, Series)
    assert batch.values.shape == (5, 12)
    assert batch.hist is None


def test_wrong_options_are_named(panel: Panel) -> None:
    ends = torch.tensor([25, 7, 40])
    with pytest.raises(UserError, match="balance is 'even'; expected steps or series"):
        TrainingWindows(panel, 12, ends, balance="even")
    with pytest.raises(UserError, match=r"data\.stride is 0"):
        TrainingWindows(panel, 12, ends, stride=0)
    with pytest.raises(UserError, match="No series has steps to train on"):
        TrainingWindows(panel, 12, torch.zeros(3, dtype=torch.long))
    with pytest.raises(UserError, match="Series 'y' holds an infinite value"):
        Panel.of([np.ones(3), np.array([1.0, np.inf])], names=["x", "y"])
    with pytest.raises(UserError, match="futr of series 1 has 2 steps"):
        Panel.of([np.ones(3), np.ones(3)], futr=[np.ones((3, 1)), np.ones((2, 1))])
