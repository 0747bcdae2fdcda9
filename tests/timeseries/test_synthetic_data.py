"""Synthetic series through loaders: the same whatever the workers, new every epoch, batches of one length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apps.timeseries.losses import ForecastLoss
from apps.timeseries.model import build_model
from apps.timeseries.series import Series
from apps.timeseries.synthetic.data import Synthetic, SyntheticSeries
from apps.timeseries.windows import Case
from core.errors import UserError

OPTIONS: dict[str, Any] = {
    "contexts": [32, 64], "shares": [0.75, 0.25], "horizon": 16, "length": 64, "val_length": 6, "batch_size": 8,
}  # fmt: skip


def module(**options: Any) -> Synthetic:
    data = Synthetic(**{**OPTIONS, **options})
    data.setup_once()
    return data


def epochs(data: Synthetic, count: int) -> list[list[Series]]:
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def same(one: Series, two: Series) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))


def test_batches_have_one_context_each_in_the_shares_asked_for() -> None:
    first, second = epochs(module(), 2)
    lengths = [batch.values.shape for batch in first]
    assert set(lengths) == {(8, 48), (8, 80)}
    assert sum(shape == (8, 48) for shape in lengths) == 6
    assert [batch.values.shape for batch in second] != lengths, "the order of the blocks is drawn anew"
    assert first[0].values.dtype == torch.float64
    assert first[0].periods.shape == (8, 2)


def test_no_two_epochs_are_alike_and_workers_change_nothing() -> None:
    first, second = epochs(module(), 2)
    assert not any(same(one, two) for one in first for two in second)
    again = epochs(module(num_workers=2), 1)[0]
    assert all(same(one, two) for one, two in zip(first, again, strict=True))
    assert not same(first[0], epochs(module(seed=1), 1)[0][0])


def test_an_epoch_goes_on_where_it_was_left() -> None:
    whole = epochs(module(), 1)[0]
    resumed = module()
    resumed.load_state_dict({"epoch": 0, "batch": 5, "seed": 0})
    rest = list(resumed.train_dataloader())
    assert len(rest) == len(whole) - 5
    assert all(same(one, two) for one, two in zip(rest, whole[5:], strict=True))


def test_validation_is_always_the_same_and_no_training_series() -> None:
    data = module()
    cases: list[Case] = [case for _ in range(2) for case in data.val_dataloader()]
    assert torch.equal(cases[0].history.values, cases[1].history.values)
    case = cases[0]
    assert case.history.values.shape == (6, 64)
    assert case.target.shape == (6, 16)
    assert (case.history.observed.long().cumsum(1)[:, -1] <= case.length).all()
    assert not case.history.observed[torch.arange(64) >= case.length[:, None]].any()
    whole = case.whole()
    trained = torch.cat([batch.values[:, :8] for batch in epochs(data, 1)[0]])
    assert not (trained[:, None] == whole.values[None, :, :8]).all(-1).any()


def test_scale_of_a_case_is_the_seasonal_error_of_its_history() -> None:
    for case in module(rhythms=["quarterly"], val_length=12).val_dataloader():
        for i in range(len(case.length)):
            lag = max(1, int(case.history.periods[i, 0]))
            n = int(case.length[i])
            y = np.where(case.history.observed[i], case.history.values[i], np.nan)[:n]
            change = np.abs(y[lag:] - y[:-lag])
            if np.isfinite(change).any() and np.nansum(change) > 0:
                assert float(case.scale[i]) == pytest.approx(np.nanmean(change))
            else:
                assert torch.isnan(case.scale[i])


def test_blocks_are_shuffled_whole() -> None:
    series = SyntheticSeries(40, [32, 64], [1, 1], 16, 8)
    order = series.epoch_order(torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(40))
    blocks = np.array(order).reshape(5, 8)
    assert (blocks // 8 == blocks[:, :1] // 8).all()
    assert blocks[:, 0].tolist() != sorted(blocks[:, 0].tolist())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shares": [1.0]}, "one share for each of 2 contexts"),
        ({"contexts": []}, "at least 2 each"),
        ({"horizon": 0}, r"data\.horizon is 0"),
        ({"length": 4}, "less than one batch of 8"),
        ({"rhythms": ["hourli"]}, "names 'hourli'.*hourly"),
    ],
)
def test_mistakes_are_told_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        module(**options)


def test_facts_are_those_of_every_forecaster() -> None:
    facts = module().describe()
    assert {"freq", "season_length", "columns", "futr", "hist", "static", "scalers", "h"} <= set(facts)
    assert (facts["h"], facts["context"]) == (16, 64)


# ----------------------------------------------------------------------------------- what pre-training asks of the task


def test_the_local_space_weighs_by_the_root_of_spread_by_step() -> None:
    torch.manual_seed(0)
    model = build_model({"name": "rimer", "patch_len": 8, "output_len": 16, "dim": 32, "num_layers": 1, "head_dim": 16})
    line = torch.arange(48.0, dtype=torch.float64)
    jumps = torch.tensor([0.0, 5.0], dtype=torch.float64).repeat(24)
    periods, start = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for values, expected in ((line, None), (jumps, 1.0)):
        series = Series(values[None], torch.ones(1, 48, dtype=torch.bool), start, periods)
        history = series.first(32)
        out = model(history)
        last = out._replace(z=out.z[:, 3:], loc=out.loc[:, 3:], scale=out.scale[:, 3:], base=out.base[:, 3:] - 24)
        shown = history.observed[:, 24:]
        plain, local = (
            ForecastLoss("quantile", space)(model, last, values[None, 24:], series.observed[:, 24:], shown)
            for space in ("normalised", "local")
        )
        # a line over 32 steps has the standard deviation of 32 whole numbers, and steps of 1
        wanted = expected or np.std(np.arange(32)) ** 0.5
        assert (local / plain).item() == pytest.approx(wanted, rel=1e-4)
