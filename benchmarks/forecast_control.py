"""A control of the protocol that Rimer was published with: what copying its own input scores there.

The published evaluation (arXiv 2503.06121; train.py and utils/data_loader.py of Alic-Li/BlackGoose_Rimer at 6d6757a)
splits a file's rows at random, leaves them unsorted, cuts windows of 32 and takes the same window one row further as
target: 31 of 32 target values are in the input. Errors are those of one window of one channel, OT.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from apps.timeseries.ett import LongSet
from benchmarks.report import Table

WINDOW = 32
SHARE = 0.1
Floats = np.ndarray


def scores(guess: Floats, truth: Floats) -> dict[str, float]:
    """RMSE, MAE and R2 (against the truth's own mean)."""
    off = guess - truth
    unexplained = float(np.square(off).sum() / np.square(truth - truth.mean()).sum())
    return {"RMSE": float(np.sqrt(np.square(off).mean())), "MAE": float(np.abs(off).mean()), "R2": 1 - unexplained}


def copied(rows: Floats) -> tuple[Floats, Floats]:
    """Windows of rows (N,) -> (guess, truth), both (n, 32): the 31 known values, then the window's mean; the target."""
    every = np.lib.stride_tricks.sliding_window_view(rows, WINDOW + 1)
    inputs, targets = every[:, :-1], every[:, 1:]
    return np.concatenate([inputs[:, 1:], inputs.mean(1, keepdims=True)], axis=1), targets


def control(table: LongSet, channel: str = "OT", seed: int = 42) -> dict[str, Mapping[str, float]]:
    """What copying scores as published and on honest terms, by what is judged."""
    rows = table.values[:, table.channels.index(channel)].numpy()
    shuffled = np.random.RandomState(seed).permutation(rows)[: round(SHARE * len(rows))]
    guess, truth = copied(shuffled)
    first, end = table.rows("test")
    ahead = rows[first:end]
    return {
        "shuffled rows, window by window, median": _median_window(guess, truth),
        "shuffled rows, all windows": scores(guess.ravel(), truth.ravel()),
        "shuffled rows, the one step that is not in the input": scores(guess[:, -1], truth[:, -1]),
        "rows in order, one step ahead, last value": scores(rows[first - 1 : end - 1], ahead),
        "rows in order, 96 steps ahead, last value": scores(rows[first - 96 : end - 96], ahead),
    }


def _median_window(guess: Floats, truth: Floats) -> dict[str, float]:
    each = [scores(g, t) for g, t in zip(guess, truth, strict=True)]
    return {name: float(np.median([found[name] for found in each])) for name in each[0]}


def control_table(table: LongSet) -> Table:
    """The control as a table."""
    result = Table(
        f"Control: copying under the protocol Rimer was published with ({table.name}, OT)",
        ["what is judged", "RMSE", "MAE", "R2"],
    )
    for name, found in control(table).items():
        result.add(name, *(f"{found[key]:.4f}" for key in ("RMSE", "MAE", "R2")))
    return result
