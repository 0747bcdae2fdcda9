"""What a forecaster in training is not shown, so that it learns missing values, part-filled patches, far horizons."""

from __future__ import annotations

import torch
from torch import Tensor

_KINDS = 4


def hidden_steps(
    rows: int,
    steps: int,
    patch_len: int,
    *,
    chance: float = 0.0,
    share: float = 0.0,
    tail: int = 0,
    ends: float = 0.0,
    lengths: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which steps of training inputs to hide.

    A row that is hit has one of four kinds hidden, at random: blocks of geometric lengths, patch_len / 2 on average,
    from any step on; the same of whole patches, two on average; the ends of some patches; its tail, up to `tail` steps.

    Any row may lose its last 0 to patch_len - 1 steps beside that: streams forecast from wherever they are, and so
    from a part-filled patch patch_len - 1 times out of patch_len.

    Args:
        rows, steps: shape of the inputs; a multiple of patch_len.
        patch_len: steps of a patch.
        chance: share of the rows that are hit.
        share: up to which share of such a row is hidden (roughly: blocks may overlap); uniform between 0 and this.
        tail: longest tail; at least one step stays visible.
        ends: share of the rows whose last patch may be part-filled.
        lengths: (rows,) int64, where each row ends; None: at the last step.
        device: of the result; draws come from its global generator.

    Returns:
        (rows, steps) bool, True where hidden.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    def whole(highest: Tensor) -> Tensor:  # uniform on 1 ... highest, row by row
        return 1 + (uniform(rows, 1) * highest).floor()

    place = torch.arange(steps, device=device)
    patches = steps // patch_len
    kind = torch.randint(_KINDS, (rows, 1), device=device)
    rate = share * uniform(rows, 1)

    fine = _geometric_blocks(uniform(rows, steps), uniform(rows, steps), rate, max(1.0, patch_len / 2))
    coarse = _geometric_blocks(uniform(rows, patches), uniform(rows, patches), rate, 2.0)
    kept = torch.where(uniform(rows, patches) < 2 * rate, 1 + (uniform(rows, patches) * (patch_len - 1)).floor(), steps)
    cut = place % patch_len >= kept.repeat_interleave(patch_len, 1)
    end = torch.full((rows, 1), steps, device=device) if lengths is None else lengths[:, None]
    longest = (end - 1).clamp(0, tail)
    tails = place >= end - torch.minimum(whole(longest), longest)

    found = torch.stack((fine, coarse.repeat_interleave(patch_len, 1), cut, tails))
    hidden = found.gather(0, kind.expand(-1, steps)[None])[0] & (uniform(rows, 1) < chance)
    last = end - (whole(end.clamp(max=patch_len)) - 1)
    return hidden | ((place >= last) & (uniform(rows, 1) < ends))


def _geometric_blocks(begin: Tensor, length: Tensor, rate: Tensor, mean: float) -> Tensor:
    """(rows, steps) bool: blocks begin with probability ``rate / mean`` at each step and are ``mean`` long on average.

    ``begin`` and ``length`` are uniform numbers in [0, 1), (rows, steps).
    """
    steps = torch.arange(begin.shape[1], device=begin.device)
    if mean > 1:  # geometric on 1, 2, ...: the number of trials of chance 1 / mean up to a success
        lengths = 1 + torch.log1p(-length).div(torch.log1p(torch.tensor(-1.0 / mean, device=begin.device))).floor()
    else:
        lengths = torch.ones_like(length)
    ends = torch.where(begin < rate / mean, steps + lengths, 0.0)
    return ends.cummax(1).values > steps
