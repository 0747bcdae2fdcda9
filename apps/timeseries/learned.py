"""What a forecaster has learned, beside its weights: how frames are to be read for it, and what it forecasts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from torch import nn

from apps.timeseries import frame, frequency
from apps.timeseries.columns import NIXTLA, Columns
from apps.timeseries.covariates import Covariates
from apps.timeseries.fitting import PanelData, Recipe, fit
from apps.timeseries.followed import Followed
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.frame import Style, Table
from apps.timeseries.frequency import Frequency
from apps.timeseries.model import RimerModel
from apps.timeseries.options import choose_sizes, model_options, training_borders
from apps.timeseries.panel import Panel
from apps.timeseries.relay import Relay
from core.errors import UserError

Statics = Mapping[Hashable, np.ndarray]
"""(G,) float64 of each series, as the frame has them."""


class Live(NamedTuple):
    """Series that are followed, their frequency, and what their frames look like."""

    followed: Followed
    frequency: Frequency
    style: Style


@dataclass(frozen=True)
class Learned:
    """A model and how to use it; a value.

    Args:
        model: in evaluation mode; None before there is one.
        options: that it was built from.
        h: the horizon that it was trained for.
        columns: names of the frames' columns.
        covariates: with the statistics of the training rows.
        frequency: None: told from each frame.
        season_length: in steps; None: those usual for the frequency.
        group_size: series that are read at once.
        context: steps that a forecast rests on at most, those of the training's windows; None: all there are.
    """

    h: int
    covariates: Covariates
    frequency: Frequency | None = None
    season_length: Sequence[int] | None = None
    columns: Columns = NIXTLA
    group_size: int = 256
    context: int | None = None
    model: Forecaster | None = None
    options: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: nn.Module, config: Mapping[str, Any]) -> Self:
        """From a model folder's content."""
        data = config["data"]
        scalers = {name: (mean, spread) for name, (mean, spread) in data["scalers"].items()}
        return cls(
            h=data["h"],
            covariates=Covariates(tuple(data["futr"]), tuple(data["hist"]), tuple(data["static"]), scalers),
            frequency=None if data["freq"] is None else frequency.parse(data["freq"]),
            season_length=data["season_length"] or None,
            columns=Columns(**data["columns"]),
            context=data.get("context") or None,
            model=_forecaster(model),
            options=config["model"],
        )

    @property
    def forecaster(self) -> Forecaster:
        """The model; UserError if there is none."""
        if self.model is None:
            raise UserError("This forecaster knows nothing yet: fit(df), or Rimer.from_pretrained(folder).")
        return self.model

    def describe(self) -> dict[str, Any]:
        """What config.json says of the data."""
        return {
            "freq": self.frequency and self.frequency.alias,
            "season_length": list(self.seasons(self.frequency)),
            "columns": self.columns._asdict(),
            "futr": list(self.covariates.futr),
            "hist": list(self.covariates.hist),
            "static": list(self.covariates.static),
            "scalers": {name: list(pair) for name, pair in self.covariates.scalers.items()},
            "h": self.h,
            "context": self.context,
        }

    def seasons(self, settled: Frequency | None) -> tuple[int, ...]:
        """Season lengths in steps of this frequency."""
        if self.season_length is not None:
            return tuple(self.season_length)
        return settled.season_lengths if settled else ()

    def read(self, df: Any, freq: Any = None, phases: Mapping[Hashable, int] | None = None) -> Table:
        """The series of a user's frame."""
        freq = self.frequency if freq is None else freq
        return frame.read(df, self.columns, freq, self.covariates.columns, phases=phases)

    def read_static(self, static_df: Any, ids: Sequence[Hashable]) -> Statics | None:
        """The static covariates of these series."""
        found = self.covariates.read_static(static_df, ids, self.columns)
        return None if found is None else dict(zip(ids, found, strict=True))

    def nothing_followed(self, settled: Frequency) -> Followed:
        """The forecaster without any series, for steps of this frequency."""
        model, seasons = self.forecaster, self.seasons(settled)
        wanted = getattr(model, "num_periods", len(seasons))
        seasons = (*seasons, *[0] * wanted)[:wanted]
        return Followed(model, self.covariates, seasons, self.group_size, Relay.of(self._longest(), model.patch_len))

    def _longest(self) -> int | None:
        """Steps that a stream may have; None: any number, as of models that read windows of their own."""
        model = self.forecaster
        if not isinstance(model, RimerModel) or model.norm == "window":
            return None
        # A closed-form part needs its whole window before it says anything.
        return self.context if model.ridge is None or not self.context else 2 * max(self.context, model.input_len or 0)

    def begin(self, table: Table, static: Statics | None, *, to_go_on: bool = True) -> Live:
        """These series, followed to their ends; not `to_go_on`: for one forecast alone."""
        followed = self.nothing_followed(table.frequency).update(table, static, to_go_on=to_go_on)
        return Live(followed, table.frequency, table.style)

    def fitted(
        self, table: Table, static: Statics | None, val_size: int, arguments: Mapping[str, Any], further: dict[str, Any]
    ) -> Self:
        """With a model trained on these series: the one that is there further, or a new one.

        Args:
            table, static: the series.
            val_size: steps at the end of each for validation.
            arguments: of the estimator.
            further: options of the model.
        """
        borders = training_borders(table, self.h, val_size)
        fixed = None if static is None else np.stack([static[key] for key in table.ids])
        covariates = self.covariates if self.model else self.covariates.fitted(table, fixed, borders[0].numpy())
        seasons = self.seasons(table.frequency)
        longest = int(borders[0].max())
        patch_len = self.model.patch_len if self.model else arguments["patch_len"]
        sizes = choose_sizes(self.h, arguments["input_size"], patch_len, seasons, longest)
        options = self.options or model_options(arguments, further, sizes, self.h, covariates, seasons)
        learned = replace(self, covariates=covariates, frequency=table.frequency, context=sizes.context)
        recipe = Recipe.of(arguments)
        per_epoch = recipe.batch_size * min(recipe.val_check_steps, recipe.max_steps)
        data = PanelData(
            _panel(table, covariates, fixed, seasons), borders, learned.describe(), context=sizes.context,
            horizon=self.h, batch_size=recipe.batch_size, windows_per_epoch=per_epoch, seed=recipe.random_seed,
        )  # fmt: skip
        return replace(learned, model=fit(options, data, recipe, self.model), options=options)


def _panel(table: Table, covariates: Covariates, fixed: np.ndarray | None, seasons: Sequence[int]) -> Panel:
    past = [covariates.of_past(part) for part in table.extra]
    return Panel.of(
        table.values,
        names=[str(key) for key in table.ids],
        starts=table.start,
        periods=seasons,
        futr=[futr for futr, _ in past if futr is not None] or None,
        hist=[hist for _, hist in past if hist is not None] or None,
        static=covariates.of_static(fixed),
    )


def _forecaster(model: nn.Module) -> Forecaster:
    assert isinstance(model, Forecaster)
    return model.eval()
