"""Batches are a function of (seed, epoch, batch, rank): not of workers, of history, or of who asks."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from core.errors import UserError
from core.train.data import DataModule
from core.train.sampling import EpochBatches, RankBatches, SeededItems
from core.train.seeds import derive_seed


class Augmented(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0] + torch.rand(())


class Data(DataModule):
    def setup(self, stage: str | None = None) -> None:
        self.train_set = Augmented(torch.arange(23.0))
        self.val_set = TensorDataset(torch.arange(7.0))


def data(**options: Any) -> Data:
    module = Data(**{"batch_size": 4, **options})
    module.setup_once()
    return module


def epoch(module: Data, number: int, first: int = 0) -> list[torch.Tensor]:
    loader = module.train_dataloader()
    loader.batch_sampler.seek(number, first)
    return list(loader)


def test_workers_change_nothing() -> None:
    here, elsewhere = epoch(data(), 3), epoch(data(num_workers=2), 3)
    assert all(torch.equal(a, b) for a, b in zip(here, elsewhere, strict=True))


def test_an_epoch_can_start_at_any_batch() -> None:
    whole = epoch(data(), 2)
    rest = epoch(data(num_workers=2), 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_epochs_and_seeds_differ_in_order_and_in_augmentation() -> None:
    for other in (epoch(data(), 1), epoch(data(seed=1), 0)):
        mine, theirs = torch.cat(epoch(data(), 0)), torch.cat(other)
        assert not torch.equal(mine.floor(), theirs.floor())
        assert not set(mine.frac().tolist()) & set(theirs.frac().tolist())


def test_loading_draws_nothing_from_the_training_s_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epoch(data(), 0)
    assert torch.equal(torch.rand(3), expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 9),
    ranks=st.integers(1, 4),
    drop=st.booleans(),
    number=st.integers(0, 5),
)
def test_ranks_share_what_one_process_sees(size: int, batch: int, ranks: int, drop: bool, number: int) -> None:
    def batches(rank: int, world: int, each: int) -> list[list[int]]:
        sampler = EpochBatches(size, each, seed=1, shuffle=True, drop_last=drop, rank=rank, world_size=world)
        sampler.set_epoch(number)
        found = [[index for _, index in keys] for keys in sampler]
        assert len(found) == len(sampler)
        return found

    alone = batches(0, 1, batch * ranks)
    shared = [list(chain(*parts)) for parts in zip(*(batches(r, ranks, batch) for r in range(ranks)), strict=True)]
    for one, together in zip(alone, shared, strict=True):
        assert together[: len(one)] == one  # the last batch may be filled up, so that all ranks get as many
        assert len(together) - len(one) < ranks
    if not drop:
        assert sorted(set(chain(*shared))) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 40), batch=st.integers(1, 9), ranks=st.integers(1, 4))
def test_evaluation_sees_every_item_once(size: int, batch: int, ranks: int) -> None:
    seen = [i for r in range(ranks) for keys in RankBatches(size, batch, rank=r, world_size=ranks) for _, i in keys]
    assert sorted(seen) == list(range(size))


def test_items_do_not_depend_on_their_batch() -> None:
    items = SeededItems(Augmented(torch.arange(5.0)), seed=0)
    together = items.__getitems__([(0, 1), (0, 2)])
    assert torch.equal(items[(0, 2)], together[1])
    assert not torch.equal(items[(1, 2)], together[1])


def test_setup_runs_once() -> None:
    module = data()
    first = module.train_set
    module.setup("fit")
    assert module.train_set is first


def test_seeds_are_the_same_everywhere() -> None:
    assert derive_seed(0, "batch", 1) == 2328629843013765859
    assert derive_seed(0, 1) != derive_seed(1, 0) != derive_seed(10)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.5}, {"num_workers": -1}])
def test_wrong_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected"):
        data(**options)


def test_a_batch_larger_than_the_data() -> None:
    assert len(list(data(batch_size=64).train_dataloader())) == 1
    with pytest.raises(UserError, match="drop_last=false"):
        data(batch_size=64, drop_last=True).train_dataloader()
