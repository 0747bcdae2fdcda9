"""Checks of a whole configuration that cost no training: classes, their options, the optimiser, the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UserError


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that would go wrong later; empty if all is well."""
    from core.train.averaging import check_decay
    from core.train.instantiate import TARGET, check_target, find_class, targets
    from core.train.optim import check_name, schedule_factor
    from core.train.trainers import check_trainer

    problems: list[str] = []

    def note(check: Callable[[], Any]) -> None:
        try:
            check()
        except UserError as error:
            problems.append(str(error))

    for place in ("task", "data"):
        if not config[place].get(TARGET):
            problems.append(f"'{place}' has no _target_; choose one with experiment=... or {place}=...")
    harness: dict[str, dict[str, Any]] = {
        "task": {"model": {}, "optim": {}, "data": {}},
        "callbacks.checkpoints": {"folder": "", "monitor": None, "mode": "max"},
    }
    for where, part in targets({key: config[key] for key in ("task", "data", "logger", "callbacks")}):
        provided = {"save_dir": ""} if where.startswith("logger.") else harness.get(where, {})
        note(lambda where=where, part=part, provided=provided: check_target(part, where, provided))
    note(lambda: check_trainer(config["trainer"]))
    note(lambda: check_name(config["optim"]))
    note(lambda: schedule_factor(config["optim"], 100))
    note(lambda: check_decay(config["ema"]))
    if config["monitor"]["mode"] not in ("max", "min"):
        problems.append(f"monitor.mode is '{config['monitor']['mode']}'; expected max or min.")
    if config["pipeline"]:
        note(lambda: find_class(config["pipeline"]))
    return problems
