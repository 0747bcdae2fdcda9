"""Which items make which batch: a function of (seed, epoch, batch, rank) alone, so that any batch can be first.

Keys of items are (epoch, index) pairs: the epoch travels with the index into worker processes, where
:class:`SeededItems` seeds each item's augmentation from it. Hence order and augmentation do not depend on the
number of workers, and a resumed epoch goes on at its next batch without reading the ones before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from core.train.seeds import derive_seed, kept_random_state, seed_cpu_side

Key = tuple[int, int]


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for one rank, shuffled anew each epoch.

    All ranks cut the same permutation: global batch n is entries ``n * world_size * batch_size`` onwards, of
    which rank r takes the r-th slice. So R ranks with batch B see what one process with batch R * B sees.

    Args:
        size: number of items.
        batch_size: items per batch and rank.
        seed: of the run.
        shuffle: False keeps the items' order.
        drop_last: leave out the last, smaller batch; if False and there are several ranks, it is filled up with
            items from the front, so that each rank gets as many.
        rank, world_size: this process among all.
        order: another way to shuffle, from a generator to the items' indices, all of them once; for data that
            are read faster in some orders than in others. It may depend on nothing but the generator.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        order: Callable[[torch.Generator], list[int]] | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.order = size, batch_size, seed, order
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning looks here for ``set_epoch``."""
        return self

    def seek(self, epoch: int, batch: int) -> None:
        """The next pass is over ``epoch`` and starts at ``batch``."""
        self.epoch, self.first_batch = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes; a position sought in that very epoch stands."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next pass starts."""
        per_step = self.batch_size * self.world_size
        return self.size // per_step if self.drop_last else math.ceil(self.size / per_step)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = self._order(epoch)
        per_step = self.batch_size * self.world_size
        for batch in range(self.first_batch, len(self)):
            members = order[batch * per_step : (batch + 1) * per_step]
            share = len(members) // self.world_size
            yield [(epoch, index) for index in members[self.rank * share : (self.rank + 1) * share]]

    def _order(self, epoch: int) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            order = self.order(generator) if self.order else torch.randperm(self.size, generator=generator).tolist()
            assert len(order) == self.size
        else:
            order = list(range(self.size))
        missing = 0 if self.drop_last else -self.size % self.world_size
        return order + [order[i % self.size] for i in range(missing)]


class RankBatches(Sampler[list[Key]]):
    """Batches for evaluation: every item exactly once, dealt out to the ranks, in order."""

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


class SeededItems(Dataset[Any]):
    """A map-style data set read by (epoch, index) keys, each item under its own random seed."""

    def __init__(self, items: Any, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """A batch at once (torch's fetcher asks for it), so that the outer random state is kept only once."""
        with kept_random_state():
            return [self._seeded(*key) for key in keys]

    def _seeded(self, epoch: int, index: int) -> Any:
        seed_cpu_side(derive_seed(self.seed, "item", epoch, index))
        return self.items[index]
