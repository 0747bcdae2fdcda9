"""The data module every app derives from: apps bring data sets, this brings loaders that can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch.utils.data import DataLoader

from core.errors import UserError
from core.train.sampling import EpochBatches, RankBatches, SeededItems


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that tells Lightning it goes on mid-epoch; :class:`DataModule` keeps the place itself."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class DataModule(L.LightningDataModule):
    """Data sets in, loaders out; the same batches whatever the workers and however often the run was killed.

    An app overrides :meth:`setup`, which sets ``train_set``, ``val_set`` and ``test_set`` (map-style data sets,
    None or empty where there is none; one with a method ``epoch_order`` decides how it is shuffled, see
    :class:`core.train.sampling.EpochBatches`), and :meth:`describe`. Augmentation may draw from torch's, NumPy's or
    Python's global generators: each item is seeded from (seed, epoch, index). What is random per batch (Mixup)
    belongs into the training step, which is seeded as well.

    Args:
        batch_size: items per batch and process.
        num_workers: processes that load ahead; 0 loads in the training process.
        seed: of order and augmentation.
        shuffle: False trains in the data set's order.
        drop_last: leave out an epoch's last, smaller batch; None: if there is a whole one.
        eval_batch_size: for validation and test; None: ``batch_size``.
        pin_memory: None: if a GPU is there.
        collate: joins items to a batch; None: torch's way.
    """

    train_set: Any = None
    val_set: Any = None
    test_set: Any = None

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool | None = None,
        eval_batch_size: int | None = None,
        pin_memory: bool | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"data.{name} is {value!r}; a whole number of at least {least} was expected.")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.eval_batch_size = eval_batch_size or batch_size
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.collate = collate
        self._position = (0, 0)

    def setup(self, stage: str | None = None) -> None:
        """Set the three data sets. Called once per process by the harness, before the task is built."""
        raise NotImplementedError(f"{type(self).__name__} must override setup().")

    def describe(self) -> dict[str, Any]:
        """Facts known after :meth:`setup` that the model needs (classes, channels, sizes); plain values."""
        return {}

    def setup_once(self) -> None:
        """Run :meth:`setup` now and turn Lightning's later calls into nothing: reading files once is enough."""
        if "setup" not in self.__dict__:
            self.setup("fit")
            self.__dict__["setup"] = lambda stage=None: None

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, seeded batches, from the place a loaded checkpoint names."""
        size = self._size("train")
        rank, world_size = self._place()
        whole = size >= self.batch_size * world_size
        batches = EpochBatches(
            size,
            self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=whole if self.drop_last is None else self.drop_last,
            rank=rank,
            world_size=world_size,
            order=getattr(self.train_set, "epoch_order", None),
        )
        if len(batches) == 0:
            raise UserError(
                f"data.batch_size={self.batch_size} on {world_size} process(es) is more than the {size} training "
                "items, and data.drop_last=true leaves nothing: take a smaller batch or drop_last=false."
            )
        batches.seek(*self._position)
        return self._loader(self.train_set, batches)

    def val_dataloader(self) -> Any:
        """Validation batches in order, or nothing."""
        return self._evaluation("val")

    def test_dataloader(self) -> Any:
        """Test batches in order, or nothing."""
        return self._evaluation("test")

    def has(self, split: str) -> bool:
        """Whether "train", "val" or "test" has any items."""
        items = getattr(self, f"{split}_set")
        return items is not None and len(items) > 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch and batch that come next; part of every checkpoint."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epoch = loop.epoch_progress.current
        assert isinstance(epoch, _ProcessedTracker)
        mid_epoch = epoch.ready > epoch.processed
        batch = loop.epoch_loop.batch_progress.current.ready if mid_epoch else 0
        return {"epoch": epoch.processed, "batch": batch, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stood."""
        self._position = (state_dict["epoch"], state_dict["batch"])

    def _evaluation(self, split: str) -> Any:
        if not self.has(split):
            return []
        size = self._size(split)
        batches = RankBatches(size, self.eval_batch_size, rank=self._place()[0], world_size=self._place()[1])
        return self._loader(getattr(self, f"{split}_set"), batches)

    def _size(self, split: str) -> int:
        if not self.has(split):
            raise UserError(f"{type(self).__name__} holds no {split} items.")
        return len(getattr(self, f"{split}_set"))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, items: Any, batches: EpochBatches | RankBatches) -> ResumableLoader:
        return ResumableLoader(
            SeededItems(items, self.seed),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # its own: making an iterator must not draw from the training's numbers
        )


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM go to the whole process group; the trainer must still get its batches to stop well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
