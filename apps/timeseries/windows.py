"""Windows of series: random or all of them for training, every so many steps for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apps.timeseries.panel import Panel
from apps.timeseries.series import Series, stack
from core.errors import UserError


class TrainingWindows(Dataset[Series]):
    """Windows of ``steps`` steps, cut before each series' ``ends``.

    A series shorter than a window is one window, padded on the right with ``observed=False``.

    Args:
        panel: the series.
        steps: of a window: context and horizon together.
        ends: (S,) int64, where the training part of each series ends; 0 leaves it out.
        per_epoch: random windows in an epoch, drawn from torch's global generator (which the data module seeds for
            each item); None: all windows ``stride`` apart, each once, in order.
        balance: what random windows are drawn by: "steps", every window is as likely, or "series", every series is.
        stride: between windows if ``per_epoch`` is None.

    Raises:
        UserError: an option that makes no sense, or nothing to train on.
    """

    def __init__(
        self,
        panel: Panel,
        steps: int,
        ends: Tensor,
        *,
        per_epoch: int | None = None,
        balance: str = "steps",
        stride: int = 1,
    ) -> None:
        if balance not in ("steps", "series"):
            raise UserError(f"data.balance is '{balance}'; expected steps or series.")
        _whole("data.stride", stride)
        if per_epoch is not None:
            _whole("data.windows_per_epoch", per_epoch)
        self.panel, self.steps, self.ends = panel, steps, ends
        self.per_epoch, self.balance, self.stride = per_epoch, balance, stride
        starts = torch.where(ends > 0, (ends - steps).clamp_min(0) // stride + 1, 0)
        self.firsts = torch.cat([starts.new_zeros(1), starts.cumsum(0)])
        self.used = (starts > 0).nonzero().flatten()
        if not len(self.used):
            raise UserError("No series has steps to train on; shorten data.val_size and data.test_size.")

    @property
    def total(self) -> int:
        """All windows there are."""
        return int(self.firsts[-1])

    def __len__(self) -> int:
        return self.per_epoch or self.total

    def __getitem__(self, index: int) -> Series:
        if self.per_epoch is None:
            return self._cut(index)
        if self.balance == "steps":
            return self._cut(int(torch.randint(self.total, ())))
        number = int(self.used[torch.randint(len(self.used), ())])
        low, high = self.firsts[number : number + 2].tolist()
        return self._cut(int(torch.randint(low, high, ())))

    def _cut(self, index: int) -> Series:
        number = int(torch.searchsorted(self.firsts, index, right=True)) - 1
        first = (index - int(self.firsts[number])) * self.stride
        return self.panel.window(number, first, self.steps, end=int(self.ends[number]))


class Case(NamedTuple):
    """A forecast to judge: a history and what came after it. A batch has a leading B everywhere."""

    history: Series
    """``context`` steps from the first one on; padding from ``length`` on. ``futr`` reaches over what came after."""
    length: Tensor
    """() int64, steps of the history."""
    target: Tensor
    """(horizon,) float64, what followed; 0 where not observed."""
    observed: Tensor
    """(horizon,) bool."""
    scale: Tensor
    """() float64, MASE's denominator, from all of the series before the forecast; NaN if there is none."""
    place: Tensor
    """(2,) int64, number of the series and of the first forecast step in it."""

    def whole(self) -> Series:
        """A batch's history with the truth put after it: (B, context + horizon)."""
        rows = torch.arange(len(self.target), device=self.target.device)[:, None]
        steps = self.length[:, None] + torch.arange(self.target.shape[1], device=self.target.device)
        room = (0, self.target.shape[1])
        values = torch.nn.functional.pad(self.history.values, room)
        observed = torch.nn.functional.pad(self.history.observed, room)
        values[rows, steps], observed[rows, steps] = self.target, self.observed
        return self.history._replace(values=values, observed=observed)


class EvaluationWindows(Dataset[Case]):
    """Forecasts of ``horizon`` steps whose truth lies in a part of each series, ``stride`` steps apart.

    The last one ends where the part ends, none is dropped; histories may lie before the part.

    Args:
        panel: the series.
        context: the longest history.
        horizon: steps to forecast.
        begins, ends: (S,) int64, the part of each series; equal: the series is left out.
        stride: between forecasts of one series.
        period: season of MASE's denominator, in steps.
        least: steps of history that a forecast must have.
    """

    def __init__(
        self,
        panel: Panel,
        context: int,
        horizon: int,
        begins: Tensor,
        ends: Tensor,
        *,
        stride: int = 1,
        period: int = 1,
        least: int = 1,
    ) -> None:
        _whole("data.eval_stride", stride)
        self.panel, self.context, self.horizon = panel, context, horizon
        self.scales = panel.seasonal_errors(max(1, period))
        room = ends - begins.clamp_min(least) - horizon
        counts = torch.where(ends > begins, room.div(stride, rounding_mode="floor") + 1, 0).clamp_min(0)
        self.series = torch.arange(len(panel)).repeat_interleave(counts)
        rank = torch.arange(len(self.series)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        self.origins = (ends - horizon)[self.series] - (counts[self.series] - 1 - rank) * stride

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> Case:
        number, origin = int(self.series[index]), int(self.origins[index])
        length = min(origin, self.context)
        truth = self.panel.window(number, origin, self.horizon)
        return Case(
            history=self.panel.window(number, origin - length, self.context, end=origin, ahead=self.horizon),
            length=torch.tensor(length),
            target=truth.values,
            observed=truth.observed,
            scale=self.scales[self.panel.offsets[number] + origin],
            place=torch.tensor([number, origin]),
        )


def join(items: Sequence[Series | Case]) -> Any:
    """Unbatched windows, of training or of evaluation -> a batch; the collate function of the data modules."""
    first = items[0]
    if isinstance(first, Case):
        cases = [item for item in items if isinstance(item, Case)]
        histories = stack([case.history for case in cases])
        return Case(histories, *(torch.stack(part) for part in zip(*(case[1:] for case in cases), strict=True)))
    return stack([item for item in items if isinstance(item, Series)])


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; a whole number of at least 1 was expected.")
