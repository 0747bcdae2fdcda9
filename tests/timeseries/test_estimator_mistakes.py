"""Mistakes in using the estimator: each is one sentence, and nothing is lost by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.timeseries import Rimer
from core.errors import UserError

SMALL: dict[str, Any] = {"hidden_size": 16, "batch_size": 8, "max_steps": 2, "accelerator": "cpu"}
H = 10


def rows_of(values: dict[str, Any], first: str = "2026-01-05") -> pd.DataFrame:
    """Hourly series that begin together, in a long frame."""
    parts = [
        pd.DataFrame({"unique_id": name, "ds": pd.date_range(first, periods=len(y), freq="h"), "y": y})
        for name, y in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def panel() -> pd.DataFrame:
    """Two series of 200 and 60 steps."""
    draw = np.random.default_rng(0)
    return rows_of({"a": draw.normal(10, 1, 200), "b": draw.normal(0, 1, 60)})


@pytest.fixture(scope="module")
def fitted(panel: pd.DataFrame) -> Rimer:
    return Rimer(H, 64, patch_len=8, **SMALL).fit(panel)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"h": 0}, "h is 0; a whole number of at least 1"),
        ({"h": 2.5}, "h is 2.5"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"point": "mode"}, "point is 'mode'; expected one of median, mean"),
        ({"freq": "hourly"}, "freq is 'hourly'; expected a frequency"),
        ({"futr_exog_list": ["x"], "hist_exog_list": ["x"]}, "'x' is named twice"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Rimer(**{"h": 4, **options})


@pytest.mark.parametrize(
    ("options", "fit", "sentence"),
    [
        ({"model": "rimmer"}, {}, "no model 'rimmer'; did you mean 'rimer'"),
        ({"num_heads": 4}, {}, "Neither Rimer nor its model 'rimer' has an option 'num_heads'"),
        ({"input_size": 0}, {}, "input_size is 0"),
        ({"patch_len": "8"}, {}, "patch_len is '8'"),
        ({"mixer": "mamba"}, {}, "mamba"),
        ({"loss": "huber"}, {}, "huber"),
        ({}, {"val_size": 3}, "val_size is 3; 0, or at least one horizon of 10 steps"),
        ({}, {"val_size": 500}, "val_size is 500, but the longest series has 200 steps"),
        ({}, {"target_col": "z"}, "df has no column 'z'"),
    ],
)
def test_wrong_fits(panel: pd.DataFrame, options: dict[str, Any], fit: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Rimer(**{"h": H, **SMALL, **options}).fit(panel, **fit)


def test_nothing_to_learn_from_or_to_go_on_from(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No series of df has two values or more"):
        Rimer(3, **SMALL).fit(rows_of({"x": [1.0, np.nan]}))
    with pytest.raises(UserError, match="knows nothing yet"):
        Rimer(3).update(panel)
    fitted.save(tmp_path)
    shutil.rmtree(tmp_path / "streams")
    with pytest.raises(UserError, match="no series to go on from"):
        Rimer.load(tmp_path).predict()
    with pytest.raises(UserError, match="Rimer has no option 'hh'"):
        Rimer.load(tmp_path, hh=3)


def test_wrong_updates(fitted: Rimer, panel: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    model = Rimer.load(tmp_path)
    expected = model.predict()
    for first, sentence in (
        (
            "2026-01-13 07:00",
            "'a' begin at 2026-01-13 07:00:00, but it was followed up to 2026-01-13 07:00:00; rows from",
        ),
        ("2226-01-13 07:00", "begin at 2226-01-13 07:00:00, [0-9,]+ steps after"),
        ("2026-01-13 08:30", "between the steps of frequency 'h'"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.update(rows_of({"a": [1.0]}, first))
    pd.testing.assert_frame_equal(model.predict(), expected)


def test_windows_that_do_not_fit(fitted: Rimer, panel: pd.DataFrame) -> None:
    for options, sentence in (
        ({"n_windows": 30, "step_size": H}, "need series of 301 steps or more; the longest has 200"),
        ({"n_windows": 0}, "n_windows is 0"),
        ({"step_size": 0}, "step_size is 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            fitted.cross_validation(panel, use_fitted=True, **options)
