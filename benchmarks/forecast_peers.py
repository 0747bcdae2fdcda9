"""Peers of the zero-shot benchmark: statsforecast's models fitted to each series, neuralforecast's trained per set.

Classical models see at most ``BOUND`` seasons of a series, or ``PLAIN`` steps where there is no season: beyond that
AutoETS takes minutes per series, and parameters of long ago say little. statsforecast's AutoETS leaves seasons longer
than 24 steps out, as R's does.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.forecast_scores import LEVELS, long_frame
from benchmarks.forecast_sets import EvaluationSet
from core.errors import UserError

Floats = np.ndarray
BOUND = 28
PLAIN = 1024
WIDTHS = (20, 40, 60, 80, 95)  # intervals whose ends are LEVELS, but for the median


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)  # by name: types are checked without this extra
    except ImportError:
        raise UserError(f"The peers need {name.split('.')[0]}: pip install 'greylag[bench]'.") from None


# -------------------------------------------------------------------------------------------------------- statistical


def bounded(evaluation: EvaluationSet) -> list[Floats]:
    """The histories as classical models see them: the last steps of long ones."""
    steps = BOUND * evaluation.season if evaluation.season > 12 else PLAIN
    return [history[-steps:] for history in evaluation.histories]


def statistical(evaluation: EvaluationSet, model: str) -> Floats:
    """Quantiles (series, h, LEVELS) of a model of ``statsforecast.models``, one process.

    Its point forecast stands for the median. Where a model cannot be fitted (a series too short for its season),
    seasonal naive takes its place, as statsforecast offers.
    """
    os.environ.setdefault("NIXTLA_ID_AS_COL", "1")
    models, forecaster = _package("statsforecast.models"), _package("statsforecast").StatsForecast
    fitted = getattr(models, model)(season_length=evaluation.season, alias="m")
    spare = models.SeasonalNaive(season_length=evaluation.season)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = forecaster([fitted], freq=1, n_jobs=1, fallback_model=spare).forecast(
            df=long_frame(bounded(evaluation)), h=evaluation.h, level=list(WIDTHS)
        )
    frame = frame.sort_values(["unique_id", "ds"])
    return _columns(frame, evaluation, {level: _interval_end("m", level) for level in LEVELS})


def _interval_end(model: str, level: float) -> str:
    width = round(200 * abs(level - 0.5))
    return model if width == 0 else f"{model}-{'lo' if level < 0.5 else 'hi'}-{width}"


def _columns(frame: Any, evaluation: EvaluationSet, names: dict[float, str]) -> Floats:
    table = frame[[names[level] for level in LEVELS]].to_numpy(np.float64)
    return np.sort(table.reshape(len(evaluation), evaluation.h, len(LEVELS)), axis=-1)


# ------------------------------------------------------------------------------------------------------------- neural


def neural(evaluation: EvaluationSet, model: str, *, steps: int = 200, seed: int = 1) -> Floats:
    """Quantiles (series, h, LEVELS) of a model of ``neuralforecast.models`` trained on the set's own histories.

    Input of 2 to 5 horizons, scaled by window ("robust"), multi-quantile loss, `steps` steps of 128 windows (PatchTST
    twice as many); smaller networks than the defaults, so that all sets take minutes on a CPU.
    """
    models, loss = _package("neuralforecast.models"), _package("neuralforecast.losses.pytorch").MQLoss
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    h = evaluation.h
    size = max(2 * h, min(5 * h, 7 * evaluation.season), 8)
    options: dict[str, Any] = {
        "h": h, "input_size": size, "max_steps": steps, "loss": loss(quantiles=list(LEVELS)), "scaler_type": "robust",
        "random_seed": seed, "batch_size": 32, "windows_batch_size": 128, "start_padding_enabled": True, "alias": "m",
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    if model == "NHITS":
        options["mlp_units"] = [[128, 128]] * 3
    if model == "PatchTST":
        patch = min(16, max(2, size // 4))
        options |= {"patch_len": patch, "stride": max(1, patch // 2)}
        options |= {"hidden_size": 64, "n_heads": 4, "linear_hidden_size": 128, "encoder_layers": 2}
        # neuralforecast's 1e-4 is meant for 5,000 steps: after few, its quantiles still lie on each other.
        options |= {"learning_rate": 1e-3, "max_steps": 2 * steps, "scaler_type": "identity"}  # it has RevIN inside
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forecaster = _package("neuralforecast").NeuralForecast([getattr(models, model)(**options)], freq=1)
        forecaster.fit(long_frame(evaluation.training))
        frame = forecaster.predict(long_frame([history[-size:] for history in evaluation.histories]))
    frame = frame.sort_values(["unique_id", "ds"])
    found = [column for column in frame.columns if column not in ("unique_id", "ds")]
    assert len(found) == len(LEVELS), found
    return _columns(frame, evaluation, dict(zip(LEVELS, found, strict=True)))


PEERS: dict[str, Callable[[EvaluationSet, str], Floats]] = {
    **dict.fromkeys(("SeasonalNaive", "AutoETS", "AutoTheta", "DynamicOptimizedTheta"), statistical),
    **dict.fromkeys(("NHITS", "PatchTST"), neural),
}
