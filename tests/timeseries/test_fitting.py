"""What a training keeps: the weights that were best in validation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from apps.timeseries.fitting import KeepBest


def test_validation_keeps_the_best_weights_and_ends_what_gets_no_better() -> None:
    class Module(torch.nn.Module):
        model = torch.nn.Linear(1, 1)

    module, callback = Module(), KeepBest(patience=2)
    trainer = SimpleNamespace(callback_metrics={}, should_stop=False)
    stops = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.5, math.nan, 0.5]):
        torch.nn.init.constant_(module.model.weight, step)
        trainer.callback_metrics["val/loss"] = torch.tensor(loss)
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
        stops.append(trainer.should_stop)
        if trainer.should_stop:
            break
    assert stops == [False] * 5 + [True]
    assert callback.weights is not None
    assert callback.weights["weight"].item() == 3
