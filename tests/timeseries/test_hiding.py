"""What is hidden of training inputs: how much, of which kinds, and what never."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apps.timeseries.hiding import hidden_steps

KINDS = 4


def test_nothing_is_hidden_by_default() -> None:
    assert not hidden_steps(50, 32, 8).any()
    assert not hidden_steps(50, 32, 8, chance=0.0, share=0.5, tail=16).any()


def test_tails_leave_the_first_step() -> None:
    tails = hidden_steps(4000, 32, 8, chance=1.0, share=0.0, tail=100)
    assert not tails[:, 0].any(), "without a share only tails remain"
    assert tails.any(1).float().mean() == pytest.approx(1 / KINDS, abs=0.03)
    starts = tails.float().argmax(1)[tails.any(1)]
    assert set(starts.tolist()) == set(range(1, 32))
    assert tails.long().diff(dim=1).min() >= 0, "a tail has no end"


def test_shares_and_lengths_are_what_was_asked_for() -> None:
    hidden = hidden_steps(8000, 512, 16, chance=0.5, share=0.4, tail=64)
    assert hidden.any(1).float().mean() == pytest.approx(0.5, abs=0.03)
    # a quarter each: blocks of steps, of patches (both 1 - exp(-rate), rate uniform up to 0.4), ends of a share of
    # 2 rate of the patches, of 8 of 16 steps on average, tails of 32.5
    rate = torch.linspace(0, 0.4, 1000)
    expected = 0.5 * (2 * float((1 - torch.exp(-rate)).mean()) + float(rate.mean()) + 32.5 / 512) / KINDS
    assert hidden.float().mean() == pytest.approx(expected, rel=0.1)


def test_whole_patches_and_ends_of_patches_both_occur() -> None:
    hidden = hidden_steps(400, 64, 8, chance=1.0, share=0.3, tail=1).view(400, 8, 8)
    whole = hidden.long().sum(-1)
    assert ((whole == 0) | (whole == 8)).all(1).any()
    assert (hidden[..., 1:] & ~hidden[..., :-1]).any(), "blocks begin inside patches too"
    part = (whole > 0) & (whole < 8)
    only_ends = (hidden.long().diff(dim=-1) >= 0).all(-1).all(-1) & (part.sum(1) >= 3)
    assert only_ends.float().mean() > 0.02, "some rows have ends of patches hidden, in several of them, and no else"


@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 3, 16, 29]).repeat(1000)], ids=["full", "short"])
def test_rows_end_anywhere_in_their_last_patch(lengths: Tensor | None) -> None:
    hidden = hidden_steps(4000, 32, 16, ends=1.0, lengths=lengths)
    kept = (~hidden).sum(1)
    assert torch.equal(hidden, torch.arange(32) >= kept[:, None]), "nothing but ends"
    for length in (32,) if lengths is None else (1, 3, 16, 29):
        found = kept if lengths is None else kept[lengths == length]
        expected = range(max(1, length - 15), length + 1)
        counts = torch.bincount(found, minlength=33)[list(expected)].float()
        assert int(counts.sum()) == len(found)
        assert counts.min() > 0.6 * len(found) / len(expected), "all ends are as likely"


def test_the_share_of_part_filled_ends_is_what_was_asked_for() -> None:
    hidden = hidden_steps(4000, 32, 16, ends=0.5)
    assert hidden.any(1).float().mean() == pytest.approx(0.5 * 15 / 16, abs=0.03)


def test_tails_end_where_rows_do() -> None:
    lengths = torch.tensor([5, 20, 32]).repeat(400)
    hidden = hidden_steps(1200, 32, 8, chance=1.0, tail=100, lengths=lengths)
    hit = hidden.any(1)
    starts = hidden.float().argmax(1)
    for length in (5, 20, 32):
        found = starts[hit & (lengths == length)]
        assert set(found.tolist()) <= set(range(1, length))
        assert found.min() <= 2
        assert found.max() == length - 1
