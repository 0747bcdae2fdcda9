"""Real series that come with statsmodels, as long frames: for the demo, for examples and for tests without files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class EmbeddedSet:
    """A long frame (unique_id, ds, y) with what is known about it."""

    name: str
    frame: pd.DataFrame
    freq: str
    season_length: int
    unit: str
    source: str


def load_embedded(name: str) -> EmbeddedSet:
    """One of :data:`NAMES`. Raises UserError for another name, or without statsmodels."""
    if name not in _READERS:
        raise UserError(f"There is no embedded set '{name}'{did_you_mean(name, list(_READERS))}")
    try:
        return _READERS[name]()
    except ImportError:
        raise UserError("The embedded series come with statsmodels: pip install 'greylag[timeseries]'.") from None


def _co2() -> EmbeddedSet:
    """Weekly, 1958 to 2001, 2,284 weeks of which 59 are missing."""
    from statsmodels.datasets import co2

    values = _data(co2)["co2"]
    return EmbeddedSet(
        "co2", _long("Mauna Loa", values.index, values), "W", 52, "ppm",
        "carbon dioxide in the air on Mauna Loa, Keeling and Whorf 2004, by way of statsmodels (public domain)",
    )  # fmt: skip


def _sunspots() -> EmbeddedSet:
    """Yearly, 1700 to 2008."""
    from statsmodels.datasets import sunspots

    data = _data(sunspots)
    times = _at([f"{int(year)}-01-01" for year in data["YEAR"]])
    return EmbeddedSet(
        "sunspots", _long("Sun", times, data["SUNACTIVITY"]), "YS", 11, "sunspot number",
        "yearly sunspot numbers, National Geophysical Data Center, by way of statsmodels (public domain)",
    )  # fmt: skip


def _elnino() -> EmbeddedSet:
    """Monthly, 1950 to 2010."""
    from statsmodels.datasets import elnino

    data = _data(elnino).set_index("YEAR")
    times = _at([f"{int(year)}-{month:02d}-01" for year in data.index for month in range(1, 13)])
    return EmbeddedSet(
        "elnino", _long("Nino 1+2", times, data.to_numpy().ravel()), "MS", 12, "degrees Celsius",
        "sea surface temperature of the Nino 1+2 region, US National Weather Service, by way of statsmodels "
        "(public domain)",
    )  # fmt: skip


_READERS: dict[str, Callable[[], EmbeddedSet]] = {"co2": _co2, "sunspots": _sunspots, "elnino": _elnino}
NAMES = tuple(_READERS)


def _data(module: Any) -> pd.DataFrame:
    return module.load_pandas().data


def _at(days: list[str]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(np.array(days, dtype="datetime64[us]"))


def _long(name: str, times: pd.Index, values: object) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": name, "ds": times, "y": np.asarray(values, dtype=np.float64)})
