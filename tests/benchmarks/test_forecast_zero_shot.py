"""The zero-shot benchmark's parts: official splits, scores against plain formulas, forecasts kept, sums of tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("utilsforecast", reason="needs pip install 'greylag[timeseries]'")

from benchmarks import forecast_sets, forecast_zero_shot
from benchmarks.forecast_peers import bounded, statistical
from benchmarks.forecast_scores import LEVELS, LOSS_LEVELS, Scores, geometric_mean, score
from benchmarks.forecast_sets import EvaluationSet, cut, read_sets
from benchmarks.forecast_zero_shot import BASE, OURS, Kept, Made, fingerprint, forecasts
from core.errors import UserError


@pytest.fixture
def small() -> EvaluationSet:
    rng = np.random.default_rng(0)
    histories = [np.cumsum(rng.normal(size=n)) + 20 for n in (9, 30, 17)]
    return EvaluationSet("small", 5, 4, 4, (4,), histories, rng.normal(20, 2, (3, 5)), histories, "made up")


def naive(evaluation: EvaluationSet) -> np.ndarray:
    """The last season again, (series, h)."""
    season = evaluation.season
    return np.stack([np.resize(history[-season:], evaluation.h) for history in evaluation.histories])


def spread(points: np.ndarray) -> np.ndarray:
    return points[:, :, None] + np.array([(level - 0.5) * 4 for level in LEVELS])


# --------------------------------------------------------------------------------------------------------------- sets


def test_windows_end_where_they_should_and_never_see_ahead() -> None:
    rows = np.arange(100.0)
    histories, futures = cut(rows, 90, 4, 7, 3)
    assert futures.tolist() == [[72, 73, 74, 75], [79, 80, 81, 82], [86, 87, 88, 89]]
    assert [history[-1] for history in histories] == [71, 78, 85]
    assert all(history[0] == 0 for history in histories)


def _or_skip(name: str) -> EvaluationSet:
    try:
        return read_sets([name])[0]
    except UserError as error:
        pytest.skip(str(error))


# MASE of repeating the last season (the last value for yearly and weekly data), as the competitions publish it:
# M4's for weekly data (Makridakis et al. 2020), and those of Tourism (Athanasopoulos et al. 2011, table 4).
@pytest.mark.parametrize(
    ("name", "count", "h", "published"),
    [
        ("m4_weekly", 359, 13, 2.777),
        ("tourism_yearly", 518, 4, 3.01),
        ("tourism_quarterly", 427, 8, 1.70),
        ("tourism_monthly", 366, 24, 1.63),
        ("m3_yearly", 645, 6, None),
        ("m3_quarterly", 756, 8, None),
        ("m3_monthly", 1428, 18, None),
    ],
)
def test_competitions_have_their_official_splits(name: str, count: int, h: int, published: float | None) -> None:
    found = _or_skip(name)
    assert (len(found), found.h, found.futures.shape) == (count, h, (count, h))
    assert all(np.isfinite(history).all() for history in found.histories)
    if published is not None:
        assert score(found, spread(naive(found))).mase == pytest.approx(published, abs=0.006)


def test_long_series_are_cut_inside_the_official_spans() -> None:
    hourly = _or_skip("etth1")
    assert len(hourly) == 7 * 28
    assert len(hourly.training) == 7
    # the first channel: its windows lie 101 hours apart, the last one ends with the official test span
    column = forecast_sets._column(forecast_sets._file("ett", "ETTh1.csv"), "HUFL")
    assert np.array_equal(hourly.futures[27], column[14_400 - 48 : 14_400])
    first = 14_400 - 48 - 27 * 101
    assert first >= 11_520
    assert np.array_equal(hourly.histories[0], column[first - 4096 : first])
    assert np.array_equal(hourly.training[0], hourly.histories[0])
    demand = _or_skip("vic_electricity")
    assert (len(demand), demand.h, demand.season, len(demand.training)) == (60, 48, 48, 1)


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(UserError, match=r"'m5'.*m4_weekly"):
        read_sets(["m5"])


def test_a_quick_look_takes_series_from_all_over(small: EvaluationSet) -> None:
    two = small.first(2)
    assert [len(history) for history in two.histories] == [9, 17]
    assert np.array_equal(two.futures, small.futures[[0, 2]])
    assert small.first(None) is small


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_the_formulas(small: EvaluationSet) -> None:
    forecast = spread(naive(small))
    found = score(small, forecast)
    scales = [np.abs(y[4:] - y[:-4]).mean() for y in small.histories]
    median = forecast[:, :, LEVELS.index(0.5)]
    assert found.mase == pytest.approx(np.mean(np.abs(small.futures - median).mean(1) / scales))
    losses = []
    for level in LOSS_LEVELS:
        error = small.futures - forecast[:, :, LEVELS.index(level)]
        losses.append(2 * np.where(error > 0, level * error, (level - 1) * error).sum() / np.abs(small.futures).sum())
    assert found.crps == pytest.approx(np.mean(losses))
    for width, low, high in ((80, 0.1, 0.9), (95, 0.025, 0.975)):
        inside = (small.futures >= forecast[:, :, LEVELS.index(low)]) & (
            small.futures <= forecast[:, :, LEVELS.index(high)]
        )
        assert getattr(found, f"coverage{width}") == pytest.approx(inside.mean())


def test_forecasts_that_cannot_be_scored_are_refused(small: EvaluationSet) -> None:
    forecast = spread(naive(small))
    with pytest.raises(ValueError, match="shape"):
        score(small, forecast[:, :4])
    forecast[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 series of small are not finite"):
        score(small, forecast)


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


# -------------------------------------------------------------------------------------------------------------- peers


def test_seasonal_naive_of_the_package_is_ours(small: EvaluationSet) -> None:
    pytest.importorskip("statsforecast", reason="needs pip install 'greylag[bench]'")
    found = statistical(small, "SeasonalNaive")
    assert found.shape == (3, 5, len(LEVELS))
    assert np.allclose(found[:, :, LEVELS.index(0.5)], naive(small), rtol=1e-5)
    assert (np.diff(found, axis=-1) > 0).all()


def test_classical_models_see_the_end_of_long_series() -> None:
    long = np.arange(5000.0)
    one = EvaluationSet("long", 2, 24, 24, (24,), [long], np.zeros((1, 2)), [long], "")
    assert bounded(one)[0].tolist() == long[-28 * 24 :].tolist()


# ------------------------------------------------------------------------------------------------------- kept, tables


def test_forecasts_are_made_once_for_the_same_series(small: EvaluationSet, tmp_path: Path) -> None:
    kept, calls = Kept(tmp_path), []

    def make(evaluation: EvaluationSet) -> np.ndarray:
        calls.append(evaluation.name)
        return spread(naive(evaluation))

    first = forecasts([small], "naive", make, kept)["small"]
    again = forecasts([small], "naive", make, Kept(tmp_path))["small"]
    assert np.array_equal(first.forecast, again.forecast)
    assert first.seconds == again.seconds
    assert calls == ["small"]
    fewer = small.first(2)
    assert fingerprint(fewer) != fingerprint(small)
    forecasts([fewer], "naive", make, kept)
    assert len(calls) == 2


def test_tables_add_up(small: EvaluationSet) -> None:
    base, better = Scores(2.0, 0.2, 0.8, 0.95), Scores(1.0, 0.1, 0.7, 0.9)
    scores = {OURS: {"a": better, "b": base}, BASE: {"a": base, "b": base}, "AutoTheta": {"a": base}}
    assert forecast_zero_shot.relative(scores[OURS], scores[BASE], "mase") == pytest.approx(0.5**0.5)
    assert forecast_zero_shot.relative(scores["AutoTheta"], scores[BASE], "mase") is None
    table = forecast_zero_shot.error_table("MASE", "mase", scores)
    assert list(table.rows[1]) == ["b", 2.0, 2.0, None]
    verdicts = {row[0]: row[3] for row in forecast_zero_shot.bars(scores).rows}
    assert verdicts == {
        f"a: by {BASE}'s": "yes", f"b: by {BASE}'s": "no",
        f"geometric mean by {BASE}'s": "yes", "geometric mean by AutoTheta's": "yes",
    }  # fmt: skip
    made = {BASE: {"small": Made(spread(naive(small)), 1.0)}}
    text = forecast_zero_shot.make_report([small], made, "--output x", ["A note."]).markdown()
    assert "| small |" in text
    assert "- A note." in text


def test_what_the_largest_series_weighs(small: EvaluationSet) -> None:
    """A forecast that is the base's but for the largest series is level with it elsewhere."""
    sizes = np.abs(small.futures).sum(1)
    largest = int(sizes.argmax())
    base = spread(naive(small))
    worse = base.copy()
    worse[largest] += sizes[largest]
    made = {OURS: {"small": Made(worse, 1.0)}, BASE: {"small": Made(base, 1.0)}}
    ((name, share, whole, less),) = forecast_zero_shot.largest_table([small], made).rows
    assert (name, share) == ("small", f"{100 * sizes[largest] / sizes.sum():.1f} %")
    assert less == pytest.approx(1.0)
    assert isinstance(whole, float)
    assert whole > 1.1


def test_our_model_forecasts_through_the_estimator(small: EvaluationSet, tmp_path: Path) -> None:
    """Frames in, quantiles out: the same as by the model's own streams."""
    import torch

    from apps.timeseries.model import build_model
    from apps.timeseries.pipeline import TimeseriesPipeline
    from apps.timeseries.synthetic.data import Synthetic

    torch.manual_seed(0)
    options = {"name": "rimer", "patch_len": 4, "output_len": 8, "dim": 32, "num_layers": 1, "head_dim": 16}
    model = build_model(options).eval()
    data = Synthetic(contexts=[32], shares=[1.0], horizon=8, length=64)
    data.setup_once()
    config = {"app": "timeseries", "name": "tiny", "model": options, "data": data.describe()}
    TimeseriesPipeline(model, config).save_pretrained(tmp_path / "model")
    made, count = forecast_zero_shot.our_forecasts([small], tmp_path / "model", 16, Kept(tmp_path))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    found = made["small"].forecast
    for i, history in enumerate(small.histories):
        values = torch.from_numpy(history[-16:])[None]
        stream = model.start(torch.tensor([[4, 0]]), torch.zeros(1, dtype=torch.int64))
        stream = model.update(stream, values, torch.ones_like(values, dtype=torch.bool))
        quantiles = model.forecast(stream, small.h)[0, :, [model.quantiles.index(level) for level in LEVELS]]
        assert np.allclose(found[i], quantiles.numpy(), rtol=1e-4, atol=1e-4)
