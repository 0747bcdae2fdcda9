"""The forecaster for users: long frames in, forecasts out, by the names that neuralforecast's users know.

model = Rimer(h=24).fit(df)
model.predict(level=[80, 95])
model.update(new_rows).predict()
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from apps.timeseries import frame, frequency
from apps.timeseries.backtest import Backtest
from apps.timeseries.columns import Columns
from apps.timeseries.covariates import Covariates
from apps.timeseries.frame import Style, Table
from apps.timeseries.head import LEVELS
from apps.timeseries.learned import Learned, Live, Statics
from apps.timeseries.options import require_whole
from apps.timeseries.quantiles import POINTS, Wanted
from core.checkpoint import files
from core.errors import UserError, did_you_mean

STREAMS, FRAME = "streams", "frame.json"


class Rimer:
    """RWKV-7 over patches of series, as an estimator; or one of its twins.

    Args:
        h: horizon in steps; :meth:`predict` takes any other as well.
        input_size: steps of history in a training window, and the most that a forecast rests on; None: three horizons
            or two seasons, whichever is longer; -1: the longest series.
        model: "rimer", or a twin: "ridge", "dlinear", "seasonal_naive", ...
        patch_len: steps per token; None: by the input's size, 16 at most.
        hidden_size, num_layers, mixer, norm, dropout: of the network.
        loss: "quantile"; or "mse" or "mae", for points alone; None: quantiles, of a model that can.
        quantiles: levels that are trained; those between are interpolated, none beyond are given.
        point: what the column named `alias` holds: "median" or "mean".
        max_steps, learning_rate, weight_decay, batch_size: of the training; windows a batch.
        val_check_steps: steps between validations, if there is a validation part; the best weights are kept.
        early_stop_patience_steps: validations without a better one that end the training; -1: none does.
        random_seed: of weights, windows and dropout.
        futr_exog_list: columns known ahead, to be given to :meth:`predict` as `futr_df`.
        hist_exog_list: columns known up to now.
        stat_exog_list: columns of `static_df`.
        freq: "h", "30min", "W", "MS", ...; a whole number between integer stamps; None: told from the stamps.
        season_length: one or several seasons in steps; None: those usual for the frequency.
        alias: the name of the forecast's columns.
        accelerator, devices, precision: of Lightning's Trainer; `trainer` holds further options of it.
        inference_batch_size: series that are read at once.
        verbose: show the training's progress.
        options: of the model (``apps.timeseries.model.build_model``).

    Raises:
        UserError: a value that makes no sense.
    """

    def __init__(
        self,
        h: int,
        input_size: int | None = None,
        *,
        model: str = "rimer",
        patch_len: int | None = None,
        hidden_size: int = 128,
        num_layers: int = 2,
        mixer: str = "rwkv7",
        norm: str = "causal",
        dropout: float = 0.1,
        loss: str | None = None,
        quantiles: Sequence[float] = LEVELS,
        point: str = "median",
        max_steps: int = 500,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        val_check_steps: int = 50,
        early_stop_patience_steps: int = -1,
        random_seed: int = 1,
        futr_exog_list: Sequence[str] | None = None,
        hist_exog_list: Sequence[str] | None = None,
        stat_exog_list: Sequence[str] | None = None,
        freq: str | int | None = None,
        season_length: int | Sequence[int] | None = None,
        alias: str = "Rimer",
        accelerator: str = "auto",
        devices: int = 1,
        precision: str = "32-true",
        trainer: dict[str, Any] | None = None,
        inference_batch_size: int = 256,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "options")}
        for name in ("h", "max_steps", "batch_size", "val_check_steps", "inference_batch_size"):
            given[name] = require_whole(name, given[name])
        if point not in POINTS:
            raise UserError(f"point is {point!r}; expected one of {', '.join(POINTS)}.")
        futr, hist, static = (tuple(names or ()) for names in (futr_exog_list, hist_exog_list, stat_exog_list))
        self.h, self.alias, self.point = given["h"], alias, point
        self._base = Learned(
            self.h,
            Covariates(futr, hist, static),
            None if freq is None else frequency.parse(freq),
            [season_length] if isinstance(season_length, int) else season_length,
            group_size=inference_batch_size,
        )
        self._given = {
            **given,
            "quantiles": list(quantiles),
            "freq": self._base.frequency and self._base.frequency.alias,
            **options,
        }
        self.learned = self._base
        self._options = options
        self._fitted: tuple[Table, Statics | None] | None = None
        self._live: Live | None = None

    def fit(
        self,
        df: Any,
        val_size: int = 0,
        static_df: Any = None,
        *,
        use_init_models: bool = False,
        freq: str | int | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> Self:
        """Train on the series of a long frame; forecasts then go on from their ends.

        Args:
            df: pandas or polars, a row for each series and step, in any order; NaN for a missing value.
            val_size: steps at the end of each series for validation: 0, or at least one horizon.
            static_df: one row a series, with the columns of `stat_exog_list`.
            use_init_models: start from fresh weights. Else a model that is there, from an earlier call or from
                :meth:`from_pretrained`, is trained further, its sizes and its scaling of covariates as they are.
            freq: see the constructor, which it outranks.
            id_col, time_col, target_col: names of the columns.

        Raises:
            UserError: a frame, or arguments, that cannot be used; with the reason.
        """
        base = self._before(freq, id_col, time_col, target_col)
        table = base.read(df)
        static = base.read_static(static_df, table.ids)
        if not use_init_models:
            base = replace(self.learned, frequency=base.frequency, columns=base.columns)
        self.learned = base.fitted(table, static, val_size, self._given, self._options)
        self._fitted, self._live = (table, static), None
        return self

    def predict(
        self,
        df: Any = None,
        static_df: Any = None,
        futr_df: Any = None,
        level: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        h: int | None = None,
        *,
        freq: str | int | None = None,
    ) -> Any:
        """The next steps of every series.

        Args:
            df: histories to go on from; None: those of :meth:`fit` and :meth:`update`. Nothing of it is kept.
            static_df: their static covariates.
            futr_df: the columns of `futr_exog_list` for the steps to forecast.
            level: of intervals, in percent: [80] gives the columns Rimer-lo-80 and Rimer-hi-80.
            quantiles: [0.1] gives the column Rimer_ql0.1.
            h: steps; None: the estimator's.
            freq: of `df`; None: the one that was fitted, else told from the stamps.

        Returns:
            A frame like the one that came (pandas or polars), sorted by series and time: id, time, `alias` and what
            was asked for. NaN for a series without a single value.

        Raises:
            UserError: nothing to go on from, frames that cannot be used, or levels beyond the trained ones.
        """
        learned, h = self.learned, self.h if h is None else h
        model = learned.forecaster
        h = require_whole("h", h)
        wanted = Wanted.of(self.alias, level, quantiles)
        wanted.check(model.quantiles)
        if df is None:
            live = self._now()
        else:
            table = learned.read(df, freq)
            live = learned.begin(table, learned.read_static(static_df, table.ids), to_go_on=False)
        ends = live.followed.ends
        known = learned.covariates.of_future(futr_df, *ends, h, live.frequency, learned.columns)
        found = live.followed.forecast(h, known)
        order = sorted(range(len(ends.ids)), key=ends.ids.__getitem__)  # type: ignore[arg-type]
        steps = ends.due[order][:, None] + np.arange(h)
        stamps = live.frequency.stamps(steps.ravel(), ends.phase[order].repeat(h))
        outputs = wanted.outputs(self.alias, found[order].reshape(-1, found.shape[-1]), model.quantiles, self.point)
        ids = [ends.ids[i] for i in order for _ in range(h)]
        return frame.write(ids, stamps, outputs, learned.columns, live.frequency, live.style)

    def update(self, df: Any, static_df: Any = None) -> Self:
        """Carry the series on with new rows, at the cost of these alone; the weights stay as they are.

        The next :meth:`predict` is the one that the whole history would have given. Series not known yet begin here,
        so that a loaded forecaster may be given its histories this way.

        Args:
            df: rows after the last ones seen, of any of the series; steps left out are missing values.
            static_df: static covariates of series that begin here.

        Raises:
            UserError: rows that were seen already, or a frame that cannot be used.
        """
        learned = self.learned
        if self._live is None and self._fitted is None:
            table = learned.read(df)
            self._live = learned.begin(table, learned.read_static(static_df, table.ids))
            return self
        live = self._now()
        ends = live.followed.ends
        phases = dict(zip(ends.ids, ends.phase.tolist(), strict=True))
        table = learned.read(df, live.frequency, phases)
        new = [key for key in table.ids if key not in phases]
        static = learned.read_static(static_df, new) if new else None
        self._live = live._replace(followed=live.followed.update(table, static), style=table.style)
        return self

    def cross_validation(
        self,
        df: Any,
        n_windows: int = 1,
        step_size: int = 1,
        h: int | None = None,
        val_size: int = 0,
        static_df: Any = None,
        refit: bool | int = False,
        use_fitted: bool = False,
        level: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        *,
        freq: str | int | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> Any:
        """Forecasts of the last steps of each series from cutoffs before them, beside what came.

        A model is trained on what lies before the first cutoff and carried on from window to window; this estimator
        stays as it is.

        Args:
            df, static_df, val_size, freq, id_col, time_col, target_col: see :meth:`fit`.
            n_windows: cutoffs of each series; the last one lies one horizon before its end.
            step_size: steps between cutoffs.
            h, level, quantiles: see :meth:`predict`.
            refit: train anew at each cutoff, or at every so many.
            use_fitted: take this estimator's model instead of training one.

        Returns:
            A frame with id, time, cutoff, target, `alias` and what was asked for, by series, cutoff and time. Series
            too short for a window are left out of it, with a warning.
        """
        wanted = Wanted.of(self.alias, level, quantiles)
        base = self._before(freq, id_col, time_col, target_col)
        table = base.read(df)
        static = base.read_static(static_df, table.ids)
        plan = Backtest(table, static, self.h if h is None else h, n_windows, step_size)

        def model_for(window: int, part: Table) -> Learned | None:
            if use_fitted:
                return self.learned if window == 0 else None
            if window and not (refit and window % int(refit) == 0):
                return None
            return base.fitted(part, static, val_size, self._given, self._options)

        return plan.run(model_for, wanted, self.alias, self.point, base.columns)

    def save(self, folder: str | Path) -> None:
        """Write the model folder, and the streams, so that the loaded forecaster goes on where this one stands.

        ``model.safetensors``, ``config.json`` and a card, as ``greylag train`` writes them, and ``streams/``.
        """
        from apps.timeseries.pipeline import TimeseriesPipeline

        learned, folder = self.learned, Path(folder)
        about = {
            "app": "timeseries",
            "name": self.alias,
            "model": dict(learned.options or {}),
            "data": learned.describe(),
        }
        TimeseriesPipeline(learned.forecaster, {**about, "estimator": self._given}).save_pretrained(folder)
        shutil.rmtree(folder / STREAMS, ignore_errors=True)
        if self._live or self._fitted:
            live = self._now()
            live.followed.save(folder / STREAMS)
            files.write_json({"freq": live.frequency.alias, "zone": live.style.zone}, folder / STREAMS / FRAME)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """The forecaster that :meth:`save` or ``greylag train`` wrote; see :meth:`from_pretrained` for options.

        Raises:
            UserError: files are missing, broken, or do not fit each other.
        """
        return cls.from_pretrained(folder, **options)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        id_col: str | None = None,
        time_col: str | None = None,
        target_col: str | None = None,
        **options: Any,
    ) -> Self:
        """A forecaster from a model folder, a run folder or the Hub; it needs no :meth:`fit`.

        Args:
            name: folder or Hub id.
            device: where the model goes; None: GPU if there is one.
            id_col, time_col, target_col: names of the frames' columns, if they are not those it was trained with.
            options: of the constructor, to be other than they were: h, freq, season_length, point, alias, ...;
                input_size=-1 lets forecasts rest on the whole history, however long.

        Raises:
            UserError: files are missing, broken, or do not fit each other; an unknown option.
        """
        from apps.timeseries.pipeline import TimeseriesPipeline

        pipeline = TimeseriesPipeline.from_pretrained(name, device=device)
        found = cls.of(pipeline.model, pipeline.config, **options)
        names = zip((id_col, time_col, target_col), found.learned.columns, strict=True)
        found.learned = replace(found.learned, columns=Columns(*(new or old for new, old in names)))
        streams = Path(name).expanduser() / STREAMS
        if (streams / FRAME).is_file():
            about = files.read_json(streams / FRAME)
            settled = frequency.parse(about["freq"])
            followed = found.learned.nothing_followed(settled).load(streams)
            found._live = Live(followed, settled, Style(zone=about["zone"]))
        return found

    @classmethod
    def of(cls, model: nn.Module, config: dict[str, Any], **options: Any) -> Self:
        """A forecaster around a model in memory; `config` is that of its folder."""
        known = list(inspect.signature(cls).parameters)
        for key in options:
            if key not in known:
                raise UserError(f"Rimer has no option '{key}'{did_you_mean(key, known)}")
        learned = Learned.of(model, config)
        told = {
            "h": learned.h,
            "futr_exog_list": learned.covariates.futr,
            "hist_exog_list": learned.covariates.hist,
            "stat_exog_list": learned.covariates.static,
        }
        found = cls(**{**config.get("estimator", {}), **told, **options})
        changed: dict[str, Any] = {"group_size": found._base.group_size}
        if found._base.frequency not in (None, learned.frequency):
            changed |= {"frequency": found._base.frequency, "season_length": None}  # it has seasons of its own
        if "input_size" in options:
            changed["context"] = None if options["input_size"] in (None, -1) else options["input_size"]
        if "season_length" in options:
            changed["season_length"] = found._base.season_length
        found.learned = replace(learned, **changed)
        return found

    def _before(self, freq: Any, id_col: str, time_col: str, target_col: str) -> Learned:
        """What the constructor was told, for frames with these columns."""
        settled = self._base.frequency if freq is None else frequency.parse(freq)
        return replace(self._base, frequency=settled, columns=Columns(id_col, time_col, target_col))

    def _now(self) -> Live:
        """The series followed so far; those that were fitted are read when they are first needed."""
        if self._fitted is not None:
            self._live, self._fitted = self.learned.begin(*self._fitted), None
        if self._live is None:
            raise UserError("There are no series to go on from: predict(df), fit(df) or update(df).")
        return self._live
