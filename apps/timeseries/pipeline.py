"""What users call: a folder or hub id in, forecasts of their series out.

pipe = TimeseriesPipeline.from_pretrained("runs/timeseries/co2/<time>/model")
pipe(frame, h=26, level=[80])
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from apps.timeseries import figures
from apps.timeseries.columns import Columns
from apps.timeseries.estimator import Rimer
from apps.timeseries.figures import Fan
from apps.timeseries.files import FLOATS, read_frame, write_frame
from apps.timeseries.forecaster import Forecaster
from apps.timeseries.graph import Window
from apps.timeseries.model import build_model
from apps.timeseries.parts import is_ahead, static_part
from core.errors import UserError, did_you_mean
from core.pipeline import Pipeline

DRAWN = 6
"""Series in a picture, the first ones."""
_SHOWN = 3  # horizons of history in a picture


class TimeseriesPipeline(Pipeline):
    """A forecaster with everything around it: frames, frequencies, covariates, intervals.

    ``config`` holds "model" (options of :func:`apps.timeseries.model.build_model`) and "data" (frequency, seasons,
    columns, covariates and horizon). :class:`apps.timeseries.Rimer` does the work, and more: it also trains, follows
    series as they go on, and cross-validates.
    """

    @classmethod
    def build_model(cls, config: dict[str, Any]) -> nn.Module:
        """The architecture with fresh weights; through the app's own table, never a name from the file."""
        if missing := [key for key in ("model", "data") if not isinstance(config.get(key), dict)]:
            raise UserError(f"The model's config.json has no '{missing[0]}'; it was not written by Greylag.")
        return build_model(config["model"])

    def __call__(
        self,
        inputs: Any,
        *,
        h: int | None = None,
        level: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        futr_df: Any = None,
        static_df: Any = None,
        **options: Any,
    ) -> Any:
        """Forecast the next steps of every series.

        Args:
            inputs: a long frame, pandas or polars: a row for each series and step; NaN for a missing value.
            h: steps; None: those it was trained for.
            level, quantiles, futr_df, static_df: see :meth:`apps.timeseries.Rimer.predict`.
            options: of :class:`apps.timeseries.Rimer`, such as freq, season_length, point or alias.

        Returns:
            A frame of the same library: id, time, the point forecast and what was asked for.

        Raises:
            UserError: a frame or an option that cannot be used.
        """
        rimer = Rimer.of(self.model, self.config, **options)
        return rimer.predict(inputs, static_df, futr_df, level=level, quantiles=quantiles, h=h)

    def predict_files(
        self,
        input: str,
        output: Path | None = None,
        *,
        h: int | None = None,
        level: float | list[float] | None = None,
        quantiles: float | list[float] | None = None,
        freq: str | int | None = None,
        season_length: int | list[int] | None = None,
        id_col: str | None = None,
        time_col: str | None = None,
        target_col: str | None = None,
        point: str | None = None,
        context: int | None = None,
        plot: str | None = None,
        **options: Any,
    ) -> int:
        """Forecast the series of a file; the work of ``greylag predict``.

        Args:
            input: a CSV or Parquet file of rows with id, time and target, or a folder of such; "-": CSV on standard
                input. Rows after a series' last target are steps to forecast: covariates that are known ahead stand
                there.
            output: a .csv, .csv.gz or .parquet file; None prints CSV.
            h: steps; None: those it was trained for.
            level: of intervals in percent; None: 80 and 95, unless quantiles are wanted or there are none.
            quantiles: such as 0.1; instead of level.
            freq, season_length: of the series, if they are not those it was trained with.
            id_col, time_col, target_col: names of the columns, if they are not those it was trained with.
            point: "median" or "mean".
            context: steps of history that a forecast rests on at most; None: those of the training's windows, which
                the model is good at; -1: all.
            plot: a .png, .svg or .pdf file to draw the first six series into.

        Returns:
            0.

        Raises:
            UserError: a file, a frame or an option that cannot be used.
        """
        if options:
            known = [name for name in inspect.signature(self.predict_files).parameters if name != "options"]
            raise UserError(f"There is no option '{min(options)}'{did_you_mean(min(options), known)}")
        told = {"freq": freq, "season_length": season_length, "point": point, "input_size": context}
        rimer = Rimer.of(self.model, self.config, **{key: v for key, v in told.items() if v is not None})
        names = zip((id_col, time_col, target_col), rimer.learned.columns, strict=True)
        columns = Columns(*(new or old for new, old in names))
        rimer.learned = replace(rimer.learned, columns=columns)
        frame = _read(input, columns)
        covariates = rimer.learned.covariates
        parts: dict[str, Any] = {
            "df": frame[~is_ahead(frame, columns)],
            "static_df": static_part(frame, columns, covariates.static, f"'{input}'"),
            "futr_df": frame if covariates.futr else None,
            "h": h,
        }
        percents = _within((80, 95), rimer) if level is None and quantiles is None else _as_list(level)
        try:
            found = rimer.predict(**parts, level=percents, quantiles=_as_list(quantiles))
        except UserError as error:  # which speaks of the estimator's arguments
            raise UserError(re.sub(r"\b(futr_|static_)?df\b", f"'{input}'", str(error))) from None
        if output is None:
            found.to_csv(sys.stdout, index=False, float_format=FLOATS)
        else:
            write_frame(found, output)
            count = found[columns.unique_id].nunique()
            print(f"{len(found):,} rows, {count:,} series, written to {output}", file=sys.stderr)
        if plot is not None:
            _draw(rimer, parts, Path(plot))
        return 0

    def graph(self) -> nn.Module:
        """The model as plain tensors in and out, for export: see :class:`apps.timeseries.graph.Window`."""
        return Window(self._forecaster(), self.config["data"]["season_length"])

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Two histories of the training's length and their first time indices, for export."""
        model = self._forecaster()
        steps = model.input_len or self.config["data"].get("context") or 8 * model.patch_len
        return torch.zeros(2, steps), torch.zeros(2, dtype=torch.int64)

    def _forecaster(self) -> Forecaster:
        assert isinstance(self.model, Forecaster)
        return self.model

    def card_text(self) -> str:
        """The model card below its head."""
        return super().card_text().rstrip() + (
            "\n\nor, with training, streams that go on and cross-validation, "
            "`apps.timeseries.Rimer.from_pretrained(...)`.\n"
        )


def _read(input: str, columns: Columns) -> pd.DataFrame:
    if input == "-":
        frame = pd.read_csv(sys.stdin, dtype={columns.unique_id: str})
    else:
        frame = read_frame(Path(input).expanduser(), columns)
    for column in columns:
        if column not in frame.columns:
            raise UserError(
                f"'{input}' has the columns {', '.join(map(str, frame.columns))}, but no '{column}'; name yours with "
                "id_col=, time_col= and target_col=."
            )
    return frame


def _as_list(value: Any) -> list[float] | None:
    return value if value is None or isinstance(value, list) else [value]


def _within(percents: Sequence[float], rimer: Rimer) -> list[float]:
    """Of these central intervals those whose bounds the model knows."""
    levels = rimer.learned.forecaster.quantiles
    return [p for p in percents if levels and levels[0] <= 0.5 - p / 200 + 1e-9 and levels[-1] >= 0.5 + p / 200 - 1e-9]


def _draw(rimer: Rimer, parts: dict[str, Any], path: Path) -> None:
    """The first series with their forecasts."""
    columns, history = rimer.learned.columns, parts["df"]
    ids = list(dict.fromkeys(history[columns.unique_id]))[:DRAWN]
    percents = _within([percent for percent, _ in figures.BANDS], rimer)
    chosen = {**parts, "df": history[history[columns.unique_id].isin(ids)]}
    found = rimer.predict(**chosen, level=percents)
    table = rimer.learned.read(chosen["df"])
    fans = []
    for number, key in enumerate(table.ids):
        ahead = found[found[columns.unique_id] == key]
        steps = table.lengths[number]
        past = min(int(steps), _SHOWN * len(ahead))
        index = table.start[number] + np.arange(steps - past, steps)
        names = {percent: [f"{rimer.alias}-{side}-{percent:g}" for side in ("lo", "hi")] for percent in percents}
        bands = {percent: (ahead[low].to_numpy(), ahead[high].to_numpy()) for percent, (low, high) in names.items()}
        fans.append(
            Fan(
                title=str(key),
                past_at=table.frequency.stamps(index, np.full(past, table.phase[number])),
                past=table.values[number][steps - past :],
                ahead_at=ahead[columns.ds].to_numpy(),
                middle=ahead[rimer.alias].to_numpy(),
                bands=bands,
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figures.save(figures.forecast_fans(fans, columns=min(2, len(fans))), path)
    except (ValueError, OSError) as error:
        raise UserError(f"plot={path}: {str(error).splitlines()[0]}") from None
