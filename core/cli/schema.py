"""The root of a run's configuration: these keys and no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Monitor:
    """Which metric says that one checkpoint is better than another."""

    metric: str | None = None  # e.g. val/top1; null: the last checkpoint is the best
    mode: str = "max"  # max or min


@dataclass
class RunConfig:
    """What ``greylag train`` composes from ``configs/``; unknown root keys are refused by Hydra.

    What is instantiated (task, data, logger, callbacks) is checked against its class's signature instead.
    """

    app: str = "???"  # which room of the house
    name: str = "???"  # which experiment: runs/<app>/<name>/<time>
    seed: int = 0
    threads: int | None = None  # of each process on a CPU; null: one per core
    model: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    pipeline: str | None = None  # dotted name of the class that predicts
    monitor: Monitor = field(default_factory=Monitor)
    ema: float | None = None  # decay of the averaged weights; null: none
    run: str | None = None  # a run folder: go on with it
    runs_dir: str = "runs"
    tags: list[str] = field(default_factory=list)
    check: bool = False  # only check the configuration
