"""Synthetic series as a data module: batches of one length each, no two epochs alike, the same again when resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from apps.timeseries.columns import NIXTLA
from apps.timeseries.series import Series
from apps.timeseries.synthetic.recipe import Drawn, draw
from apps.timeseries.synthetic.rhythms import IRREGULAR, RHYTHMS
from apps.timeseries.windows import Case, join
from core.errors import UserError, did_you_mean
from core.train.data import DataModule

TRAIN, VAL = 0, 1


def _generator(split: int) -> np.random.Generator:
    """Of one item: from NumPy's global numbers, which the loader seeds by (seed, epoch, index), and the split."""
    return np.random.default_rng([split, *np.random.randint(2**31, size=4)])  # noqa: NPY002  see above


class SyntheticSeries(Dataset[Series]):
    """Series of ``context + output_len`` steps, where the context is the same for all of a batch.

    Items lie in blocks of ``batch_size``; each block has one of the contexts, in equal proportions all along.

    Args:
        length: items in an epoch, rounded down to whole blocks.
        contexts: steps of history.
        shares: how often each context comes, in batches.
        output_len: steps beyond the history.
        batch_size: of the loader.
        rhythms: names of frequencies; None: all.
    """

    def __init__(
        self,
        length: int,
        contexts: Sequence[int],
        shares: Sequence[float],
        output_len: int,
        batch_size: int,
        rhythms: Sequence[str] | None = None,
    ) -> None:
        self.blocks, self.batch_size = length // batch_size, batch_size
        if self.blocks < 1:
            raise UserError(f"data.length is {length}, less than one batch of {batch_size} series.")
        self.output_len, self.rhythms = output_len, rhythms
        bounds = np.cumsum(shares) / np.sum(shares)
        place = (np.arange(self.blocks) * 0.6180339887498949 + 0.5) % 1.0  # the golden ratio spreads any share evenly
        self.contexts = np.asarray(contexts)[np.minimum(np.searchsorted(bounds, place, "right"), len(contexts) - 1)]

    def __len__(self) -> int:
        return self.blocks * self.batch_size

    def __getitem__(self, index: int) -> Series:
        context = int(self.contexts[index // self.batch_size])
        return as_series(draw(_generator(TRAIN), context, self.output_len, self.rhythms))

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """Blocks in random order; within a block all series are as random as they can be."""
        blocks = torch.randperm(self.blocks, generator=generator)
        return (blocks[:, None] * self.batch_size + torch.arange(self.batch_size)).flatten().tolist()


class SyntheticCases(Dataset[Case]):
    """Forecasts of synthetic series to judge; other series than those of training.

    Args:
        length: how many.
        context: steps of history at most.
        output_len: steps to forecast.
        rhythms: names of frequencies; None: all.
    """

    def __init__(self, length: int, context: int, output_len: int, rhythms: Sequence[str] | None = None) -> None:
        self.length, self.context, self.output_len, self.rhythms = length, context, output_len, rhythms

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Case:
        rng = _generator(VAL)
        drawn = draw(rng, self.context, self.output_len, self.rhythms)
        history, end = drawn.history, drawn.history + self.output_len
        values, observed = drawn.values.copy(), drawn.observed.copy()
        values[history:], observed[history:] = 0.0, False
        past = Drawn(values, observed, drawn.start, drawn.periods, history)
        return Case(
            history=as_series(past, self.context),
            length=torch.tensor(history),
            target=torch.from_numpy(drawn.values[history:end].copy()),
            observed=torch.from_numpy(drawn.observed[history:end].copy()),
            scale=torch.tensor(_seasonal_error(past), dtype=torch.float64),
            place=torch.tensor([index, history]),
        )


def as_series(drawn: Drawn, steps: int | None = None) -> Series:
    """As tensors, the first `steps` steps of it."""
    return Series(
        torch.from_numpy(drawn.values[:steps]),
        torch.from_numpy(drawn.observed[:steps]),
        torch.tensor(drawn.start),
        torch.from_numpy(drawn.periods),
    )


def _seasonal_error(past: Drawn) -> float:
    """MASE's denominator: the mean change over one season; NaN where there is none."""
    lag = max(1, int(past.periods[0]))
    values, observed = past.values[: past.history], past.observed[: past.history]
    both = observed[lag:] & observed[:-lag]
    change = np.abs(values[lag:] - values[:-lag])[both]
    return float(change.mean()) if len(change) and change.any() else float("nan")


class Synthetic(DataModule):
    """Series drawn as they are needed, from the seed, the epoch and their index alone.

    Args:
        contexts: steps of history; each batch has one of these.
        shares: how often each comes, in batches.
        horizon: steps beyond the history; the model's output_len.
        length: series in an epoch, rounded down to whole batches.
        val_length: series of the validation, always the same ones.
        rhythms: names of frequencies to draw; None: all.
        batch_size, num_workers, seed: see :class:`core.train.data.DataModule`.
    """

    title = "synthetic"
    unit = ""
    period = 1

    def __init__(
        self,
        *,
        contexts: Sequence[int] = (128, 384, 1024),
        shares: Sequence[float] = (0.5, 0.3, 0.2),
        horizon: int = 64,
        length: int = 100_000,
        val_length: int = 512,
        rhythms: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, collate=join, **loader)
        if not contexts or min(contexts) < 2:
            raise UserError(f"data.contexts is {list(contexts)}; numbers of steps, at least 2 each, were expected.")
        if len(shares) != len(contexts) or min(shares) < 0 or sum(shares) <= 0:
            raise UserError(f"data.shares is {list(shares)}; one share for each of {len(contexts)} contexts is needed.")
        if horizon < 1:
            raise UserError(f"data.horizon is {horizon}; a whole number of at least 1 was expected.")
        known = [rhythm.name for rhythm in (*RHYTHMS, IRREGULAR)]
        for name in rhythms or ():
            if name not in known:
                raise UserError(f"data.rhythms names '{name}', which is none{did_you_mean(name, known)}")
        self.contexts, self.shares, self.horizon = list(contexts), list(shares), horizon
        self.context = max(self.contexts)
        self.length, self.val_length = length, val_length
        self.rhythms = None if rhythms is None else list(rhythms)

    def setup(self, stage: str | None = None) -> None:
        """Nothing is read; series come when they are asked for."""
        self.train_set = SyntheticSeries(
            self.length, self.contexts, self.shares, self.horizon, self.batch_size, self.rhythms
        )
        self.val_set = SyntheticCases(self.val_length, self.context, self.horizon, self.rhythms)
        self.test_set = None

    def describe(self) -> dict[str, Any]:
        """Facts that every forecaster's config holds, and the data's own; plain values."""
        return {
            "freq": None,
            "season_length": [],
            "columns": NIXTLA._asdict(),
            "futr": [],
            "hist": [],
            "static": [],
            "scalers": {},
            "h": self.horizon,
            "dataset": self.title,
            "unit": self.unit,
            "context": self.context,
            "series": len(self.train_set),
            "sizes": {"train": len(self.train_set), "val": self.val_length, "test": 0},
        }
