"""Splitting a labelled set the same way every time, on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_split(labels: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Cut a set into parts that hold every class in the same proportion.

    Each class is shuffled by itself and cut at the cumulated fractions, so that no part differs from its
    exact share by more than one item per class. ``numpy.random.RandomState`` is used on purpose: NumPy
    promises its stream never changes, which it does not for ``default_rng``.

    Args:
        labels: the class of every item.
        fractions: the parts' sizes as fractions of the whole; they must add up to 1.
        seed: names the split.

    Returns:
        One sorted list of indices per fraction; together they hold each index once.

    Raises:
        ValueError: the fractions are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"The split fractions {list(fractions)} must be >= 0 and add up to 1.")
    random = np.random.RandomState(seed)
    targets = np.asarray(labels)
    parts: list[list[int]] = [[] for _ in fractions]
    for label in np.unique(targets):
        order = random.permutation(np.flatnonzero(targets == label))
        cuts = np.round(np.cumsum(fractions)[:-1] * len(order)).astype(int)
        for part, chunk in zip(parts, np.split(order, cuts), strict=True):
            part.extend(int(i) for i in chunk)
    return [sorted(part) for part in parts]
