"""Randomness as a function of where a run stands, never of what happened before.

A run that is killed and resumed then draws the same numbers as an unbroken one: dropout from (seed, epoch,
batch, rank), shuffling from (seed, epoch), augmentation from (seed, epoch, item).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of integers and words; the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    seed_cpu_side(seed, torch_too=False)


def seed_cpu_side(seed: int, *, torch_too: bool = True) -> None:
    """Seed what data loading draws from: Python, NumPy, torch's CPU generator. Some 20 microseconds."""
    if torch_too:
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  libraries (timm's Mixup) draw from the global generator
    random.seed(seed)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn or seeded on the CPU inside leaves no trace outside."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
