"""The expected calibration error, which torchmetrics bins otherwise.

torchmetrics 1.9 sorts a probability of exactly 1, the usual one of a sure classifier in float32, into a bin of its own
beyond the last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


class Bins(NamedTuple):
    """Sums over the answers of each bin, (bins,) float."""

    answers: Tensor
    probability: Tensor
    right: Tensor

    @property
    def error(self) -> Tensor:
        """Mean over all answers of |share of right ones - mean probability| of the answer's bin; NaN without any."""
        return (self.right - self.probability).abs().sum() / self.answers.sum()


def bin_answers(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> Bins:
    """Sort answers by the probability of their most probable class into the intervals ((m-1)/bins, m/bins].

    Args:
        probabilities: (N, C) float32 or float64, rows that add up to 1; the sums are of the same type.
        targets: (N,) int64.
    """
    score, predicted = probabilities.max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=score.dtype, device=score.device)
    place = (torch.bucketize(score, edges) - 1).clamp(0, bins - 1)
    zeros = torch.zeros_like(edges[:bins])
    values = (torch.ones_like(score), score, (predicted == targets).to(score.dtype))
    return Bins(*(zeros.index_add(0, place, value) for value in values))


class CalibrationError(Metric):
    """ECE of the most probable class (Guo et al. 2017, arXiv 1706.04599, equation 3), 15 equal bins unless told so.

    0 is perfect: of the answers given with probability p, the share p is right. It says nothing about accuracy.

    Args:
        bins: how many intervals of [0, 1].
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    answers: Tensor
    probability: Tensor
    right: Tensor

    def __init__(self, bins: int = BINS) -> None:
        super().__init__()
        self.bins = bins
        for name in Bins._fields:
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add answers: probabilities (N, C), targets (N,)."""
        found = bin_answers(probabilities.detach(), targets, self.bins)
        self.answers += found.answers
        self.probability += found.probability
        self.right += found.right

    def compute(self) -> Tensor:
        """The error, float32; NaN before any answers."""
        return Bins(self.answers, self.probability, self.right).error
