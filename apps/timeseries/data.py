"""What every data set of this room shares; the long-horizon benchmarks' sets, and made-up series for tests.

Each is cut by time: the end of every series is for the test, what lies before it for validation, the rest for
training. Loaders, samplers and per-item seeds come from :class:`core.train.data.DataModule`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.timeseries import frequency
from apps.timeseries.columns import NIXTLA
from apps.timeseries.ett import read_long
from apps.timeseries.panel import Panel
from apps.timeseries.paths import fill_forward
from apps.timeseries.splits import Size, split_ends
from apps.timeseries.windows import EvaluationWindows, TrainingWindows, join
from core.errors import UserError
from core.train.data import DataModule


class ForecastData(DataModule):
    """What every data set here shares: the split by time, windows, facts.

    Args:
        context: steps of history that the model sees at most.
        horizon: steps that it forecasts.
        val_size, test_size: steps at the end of each series, or a share of it below 1; None: one horizon; 0: none.
        eval_stride: steps between test forecasts of one series; None: the horizon.
        val_stride: the same for validation; None: ``eval_stride``.
        windows_per_epoch: random training windows in an epoch; None: all of them, ``stride`` apart.
        balance: see :class:`apps.timeseries.windows.TrainingWindows`.
        stride: between training windows.
        batch_size, num_workers, seed: see :class:`core.train.data.DataModule`.
    """

    title = "series"
    unit = ""

    def __init__(
        self,
        *,
        context: int = 512,
        horizon: int = 96,
        val_size: Size = None,
        test_size: Size = None,
        eval_stride: int | None = None,
        val_stride: int | None = None,
        windows_per_epoch: int | None = None,
        balance: str = "steps",
        stride: int = 1,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, collate=join, **loader)
        for name, value in (("context", context), ("horizon", horizon)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"data.{name} is {value!r}; a whole number of at least 1 was expected.")
        self.context, self.horizon = context, horizon
        self.val_size, self.test_size = val_size, test_size
        self.eval_stride = eval_stride or horizon
        self.val_stride = val_stride or self.eval_stride
        self.windows_per_epoch, self.balance, self.stride = windows_per_epoch, balance, stride
        self.panel: Panel = None  # type: ignore[assignment]  # of setup()
        self.facts: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Facts known after ``setup``; plain values only. The first eight belong to every forecaster's config."""
        return {
            "freq": None,
            "season_length": self.panel.periods.tolist(),
            "columns": NIXTLA._asdict(),
            "futr": [],
            "hist": [],
            "static": [],
            "scalers": {},
            "h": self.horizon,
            **self.facts,
            "dataset": self.title,
            "unit": self.unit,
            "context": self.context,
            "series": len(self.panel),
            "sizes": {
                split: len(items) if (items := getattr(self, f"{split}_set")) is not None else 0
                for split in ("train", "val", "test")
            },
        }

    @property
    def period(self) -> int:
        """The most important season in steps; 1 if there is none."""
        return int(self.panel.periods[0]) if len(self.panel.periods) else 1

    def stamps(self, number: int, first: int, steps: int) -> np.ndarray:
        """What pictures write under steps ``first`` to ``first + steps`` of a series: here their numbers."""
        return np.arange(first, first + steps)

    def rows_to_fit(self, lookback: int) -> tuple[list[Tensor], list[Tensor]]:
        """What closed-form forecasters are fitted to and chosen by, gaps filled by the value before them.

        Args:
            lookback: steps before the validation part that its forecasts may read.

        Returns:
            The training and the validation part of each series, (n_i,) float64.
        """
        train, val = [], []
        assert isinstance(self.train_set, TrainingWindows)
        ends = self.train_set.ends.tolist()
        for number, (end, upto) in enumerate(zip(ends, self.val_ends.tolist(), strict=True)):
            values, observed = self.panel.series(number)
            filled = fill_forward(values[None], observed[None], values[observed][:1])[0]
            train.append(filled[:end])
            if upto > end:
                val.append(filled[max(0, end - lookback) : upto])
        return train, val

    def cut(self, panel: Panel, borders: tuple[Tensor, Tensor, Tensor] | None = None, least: int = 1) -> None:
        """Set the three sets of windows.

        Args:
            panel: the series.
            borders: (S,) int64 ends of the training, validation and test part of each; None: by size.
            least: steps of history that a forecast must have.
        """
        train, val, test = borders or split_ends(panel.lengths, self.horizon, self.val_size, self.test_size)
        self.panel, self.val_ends = panel, val
        self.train_set = TrainingWindows(
            panel, self.context + self.horizon, train,
            per_epoch=self.windows_per_epoch, balance=self.balance, stride=self.stride,
        )  # fmt: skip
        common: dict[str, Any] = {"period": self.period, "least": least}
        parts = {"val": (train, val, self.val_stride), "test": (val, test, self.eval_stride)}
        for split, (begins, ends, stride) in parts.items():
            found = EvaluationWindows(panel, self.context, self.horizon, begins, ends, stride=stride, **common)
            setattr(self, f"{split}_set", found if len(found) else None)


class Ett(ForecastData):
    """ETT, or another table of the long-horizon benchmarks, in their protocol: official splits, every channel a series,
    scaled by the training rows, every window counted.

    Args:
        name: "ETTh1", "ETTm1", ..., the file's name without ending.
        root: the file or its folder; None: ``$GREYLAG_SHARED/ett``.
        options: of :class:`ForecastData`; sizes are the protocol's.
    """

    def __init__(self, *, name: str = "ETTh1", root: str | None = None, eval_stride: int = 1, **options: Any) -> None:
        super().__init__(eval_stride=eval_stride, **options)
        self.title = name
        self.root = None if root is None else Path(root).expanduser()

    def setup(self, stage: str | None = None) -> None:
        """Read, scale and cut."""
        table = read_long(self._file())
        channels = table.scaled.T.numpy()
        panel = Panel.of(
            list(channels), names=table.channels, starts=[table.start] * len(channels), periods=table.periods
        )
        borders = [torch.full((len(channels),), end) for end in table.borders]
        self.facts = {"freq": frequency.parse(f"{table.minutes}min").alias}
        self.unit = "standard deviations of the training rows"
        self.cut(panel, (borders[0], borders[1], borders[2]), least=self.context)

    def _file(self) -> Path:
        folders = [self.root] if self.root else []
        if not folders and (shared := os.environ.get("GREYLAG_SHARED")):
            folders = [Path(shared).expanduser() / "ett"]
        if self.root is not None and self.root.is_file():
            return self.root
        names = [f"{self.title}.csv", f"{self.title}.csv.gz"]
        for folder in folders:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        looked = f"in '{folders[0]}'" if folders else "nowhere"
        raise UserError(
            f"{names[0]} was looked for {looked} and not found; give its folder with data.root=<folder> "
            "(https://github.com/zhouhaoyi/ETDataset)."
        )


class FakeSeries(ForecastData):
    """Made-up series, a season and a trend with noise, gaps and different lengths: for tests and dry runs.

    Args:
        series: how many.
        length: steps of the longest; others are down to half as long.
        period: season in steps.
        missing: share of the steps that are not observed.
        split_seed: of the draw.
        options: of :class:`ForecastData`.
    """

    title = "fake"

    def __init__(
        self,
        *,
        series: int = 4,
        length: int = 200,
        period: int = 12,
        missing: float = 0.02,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.series, self.length, self.season, self.missing = series, length, period, missing
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        """Draw; the same every time for one ``split_seed``."""
        rng = np.random.default_rng(self.split_seed)
        values = []
        for _ in range(self.series):
            steps = np.arange(rng.integers(self.length // 2, self.length) + 1)
            level, slope = rng.normal(10, 3), rng.normal(0, 0.02)
            wave = rng.uniform(0.5, 3) * np.sin(2 * np.pi * (steps / self.season + rng.uniform()))
            found = level + slope * steps + wave + rng.normal(0, 0.3, len(steps))
            found[rng.uniform(size=len(steps)) < self.missing] = np.nan
            values.append(found)
        self.facts = {"freq": "h"}
        self.cut(Panel.of(values, periods=[self.season]))
