"""What training minimises: errors of everything that a token predicts and cannot see."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apps.timeseries.forecaster import Forecaster, Output
from apps.timeseries.metrics import pinball
from core.errors import UserError

LOSSES = ("quantile", "mse", "mae")
SPACES = ("normalised", "local", "data")
_HEAVIEST = 8.0  # weight of a series in the local space
_CONSTANT = 1e-5  # of the level: a history that varies less says nothing of its scale


class ForecastLoss:
    """Mean over all tokens and slots whose truth is known and not among what the token was shown.

    Tokens that have seen no two different values do not count: nothing can be normalised by their scale.

    Args:
        kind: "quantile" (pinball loss, mean over the levels), "mse" or "mae" (of point forecasters).
        space: "normalised", every series counts the same; "local", as that, but series whose steps are small beside
            their spread (trends, walks) count more, as scaled errors have it: by the root of spread by mean step,
            8 at most; "data", errors in the data's own units, for sets that are
            scaled as a whole, such as ETT.
        part_filled: how much more tokens count whose patch lacks its last steps. A window has one or two of them, but a
            stream forecasts from such a patch patch_len - 1 times out of patch_len.

    Raises:
        UserError: an unknown name, a weight that is not above 0.
    """

    def __init__(self, kind: str = "quantile", space: str = "normalised", part_filled: float = 1.0) -> None:
        for name, value, known in (("loss", kind, LOSSES), ("loss_space", space, SPACES)):
            if value not in known:
                raise UserError(f"task.{name} is '{value}'; expected one of {', '.join(known)}.")
        if not 0 < part_filled < math.inf:
            raise UserError(f"task.part_filled_weight is {part_filled}; a number above 0 was expected.")
        self.kind, self.space, self.part_filled = kind, space, part_filled

    def check(self, model: Forecaster) -> None:
        """Raise UserError unless the loss is one of this model's kind."""
        if (self.kind == "quantile") != bool(model.quantiles):
            wanted = "task.loss=quantile" if model.quantiles else "task.loss=mse or mae"
            what = "quantiles" if model.quantiles else "points"
            raise UserError(f"task.loss is '{self.kind}', but the model predicts {what}: {wanted}.")

    def __call__(self, model: Forecaster, out: Output, values: Tensor, observed: Tensor, visible: Tensor) -> Tensor:
        """The loss of one batch, a float32 scalar; 0 where nothing counts.

        Args:
            model: what predicted.
            out: what it predicted from the first N steps.
            values, observed: (B, N + O), the truth; steps beyond it count as not observed.
            visible: (B, N) bool, what the model was shown.
        """
        steps = values.shape[1]
        step = out.base[..., None] + torch.arange(out.z.shape[2], device=values.device)
        at = step.clamp(max=steps - 1).flatten(1)
        target, known = (x.gather(1, at).view(step.shape) for x in (values, observed))
        shown = visible.unflatten(1, (-1, model.patch_len)).any(-1, keepdim=True).cummax(1).values
        varies = out.scale > _CONSTANT * out.loc.abs() + torch.finfo(torch.float32).tiny
        ends = model.patch_len * torch.arange(1, out.z.shape[1] + 1, device=values.device)
        told = visible.gather(1, step.clamp(max=visible.shape[1] - 1).flatten(1)).view(step.shape)
        counts = known & (step < steps) & varies & shown & ~(told & (step < ends[:, None]))
        losses = self._losses(model, out, target)
        if self.space == "local":
            losses = losses * _weights(out, values, observed)[..., None]
        if self.part_filled != 1:
            weight = torch.where(out.base % model.patch_len > 0, self.part_filled, 1.0)[..., None].expand_as(losses)
            return (losses * weight).where(counts, 0.0).sum() / weight.where(counts, 0.0).sum().clamp_min(1)
        return losses.where(counts, 0.0).sum() / counts.sum().clamp_min(1)

    def _losses(self, model: Forecaster, out: Output, target: Tensor) -> Tensor:
        """Of each slot, (B, T, slots) float32."""
        if self.space == "data":
            found = model.denormalise(out.z, out.loc[..., None], out.scale[..., None])
        else:
            found, target = out.z.float(), model.normalise(target, out.loc, out.scale)
        if self.kind == "quantile":
            levels = torch.tensor(model.quantiles, dtype=found.dtype, device=found.device)
            return pinball(found, target, levels).mean(-1).float()
        error = (found[..., 0] - target).float()
        return error.square() if self.kind == "mse" else error.abs()


def _weights(out: Output, values: Tensor, observed: Tensor) -> Tensor:
    """Of each token in the local space, (B, T) float32; 1 where no two neighbouring steps are known."""
    both = observed[:, 1:] & observed[:, :-1]
    steps = values.diff(dim=1).abs().where(both, 0.0).sum(1) / both.sum(1).clamp_min(1)
    ratio = out.scale[..., 0] / steps[:, None]
    weights = ratio.where(steps[:, None] > 0, 1.0).sqrt().clamp(1.0, _HEAVIEST)
    return weights.float()
