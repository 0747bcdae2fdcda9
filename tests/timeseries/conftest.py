"""What several tests of this room need."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def long_frame() -> pd.DataFrame:
    """Three hourly series of different lengths with a day's season, one gap and covariates; rows in no order."""
    rng = np.random.default_rng(0)
    parts = []
    for name, length, level in (("north", 240, 10.0), ("south", 200, 50.0), ("west", 30, -5.0)):
        steps = np.arange(length)
        times = pd.Timestamp("2026-01-05") + pd.to_timedelta(steps, unit="h")
        holiday = (steps // 24 % 7 == 6).astype(float)
        y = level + 3 * np.sin(2 * np.pi * steps / 24) - 2 * holiday + rng.normal(0, 0.2, length)
        columns = {"ds": times, "y": y, "holiday": holiday, "load": rng.normal(100, 20, length), "size": abs(level)}
        parts.append(pd.DataFrame({"unique_id": name, **columns}))
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[17, "y"] = np.nan
    return frame.sample(frac=1, random_state=0, ignore_index=True)
