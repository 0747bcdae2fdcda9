"""What a causal stack promises: pieces equal the whole, padding is nothing, packed sequences do not meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core import Attention, Backbone, Context, State, TimeMix


def has_attention(backbone: Backbone) -> bool:
    return any(isinstance(module, Attention) for module in backbone.modules())


@pytest.mark.parametrize("cuts", [(1, 2, 3), (5,), (33, 34), tuple(range(1, 40))])
def test_pieces_equal_the_whole(causal_backbone: Backbone, close: Callable, cuts: tuple[int, ...]) -> None:
    x = torch.randn(2, 40, 32)
    whole, final = causal_backbone(x)
    outputs, state = [], None
    for start, end in zip((0, *cuts), (*cuts, 40), strict=True):
        y, state = causal_backbone(x[:, start:end], state)
        outputs.append(y)
    close(torch.cat(outputs, 1), whole)
    close(state, final)


def test_the_future_is_not_seen(causal_backbone: Backbone) -> None:
    x = torch.randn(1, 20, 32)
    changed = x.clone()
    changed[:, 12:] = torch.randn(1, 8, 32)
    before, after = causal_backbone(x)[0], causal_backbone(changed)[0]
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=1e-6, rtol=1e-6)
    assert (before[:, 12:] - after[:, 12:]).abs().min() > 0


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_is_nothing(causal_backbone: Backbone, close: Callable, side: str) -> None:
    left, right = {"left": (5, 0), "right": (0, 5), "both": (3, 4)}[side]
    x = torch.randn(2, 11, 32)
    wanted, state = causal_backbone(x)
    padded = torch.cat((torch.randn(2, left, 32), x, torch.randn(2, right, 32)), 1)
    mask = torch.zeros(2, left + 11 + right, dtype=torch.bool)
    mask[:, left : left + 11] = True
    y, padded_state = causal_backbone(padded, None, Context(mask=mask))
    close(y[:, left : left + 11], wanted)
    more, all_real = torch.randn(2, 3, 32), Context(mask=torch.ones(2, 3, dtype=torch.bool))
    wanted_more, padded_more = causal_backbone(more, state)[0], causal_backbone(more, padded_state, all_real)[0]
    if side == "left" or not has_attention(causal_backbone):  # rotary angles count padding that lies between
        close(padded_more, wanted_more)


def test_rows_of_different_lengths_equal_each_alone(shake: Callable, close: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x, lengths = torch.randn(3, 9, 32), (9, 4, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    y, state = backbone(x, None, Context(mask=mask))
    for row, length in enumerate(lengths):
        alone, alone_state = backbone(x[row : row + 1, :length])
        close(y[row : row + 1, :length], alone)
        close(state.select([row]), alone_state)


def test_packed_sequences_equal_each_alone(causal_backbone: Backbone, close: Callable) -> None:
    lengths = (1, 7, 30, 2)
    pieces = [torch.randn(1, n, 32) for n in lengths]
    reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
    reset[0, [0, 1, 8, 38]] = True
    packed, state = causal_backbone(torch.cat(pieces, 1), None, Context(reset=reset))
    alone = [causal_backbone(piece)[0] for piece in pieces]
    close(packed, torch.cat(alone, 1))
    if not has_attention(causal_backbone):  # a cache keeps the other sequences too, unseen
        close(state, causal_backbone(pieces[-1])[1])


def test_packed_attention_equals_each_alone(shake: Callable, close: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8, mixer="attention"))
    pieces = [torch.randn(1, n, 32) for n in (3, 8)]
    reset = torch.zeros(1, 11, dtype=torch.bool)
    reset[0, 3] = True
    packed, state = backbone(torch.cat(pieces, 1), None, Context(reset=reset))
    close(packed, torch.cat([backbone(piece)[0] for piece in pieces], 1))
    more = torch.randn(1, 2, 32)  # the stream goes on in the second sequence
    no_reset = Context(reset=torch.zeros(1, 2, dtype=torch.bool))
    close(backbone(more, state, no_reset)[0], backbone(torch.cat((pieces[1], more), 1))[0][:, 8:])


def test_reset_during_padding_cuts_the_shift(shake: Callable, close: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    first, second = torch.randn(1, 4, 32), torch.randn(1, 5, 32)
    x = torch.cat((first, torch.randn(1, 2, 32), second), 1)
    mask = torch.tensor([[True] * 4 + [False] * 2 + [True] * 5])
    reset = torch.zeros(1, 11, dtype=torch.bool)
    reset[0, 4] = True  # falls on padding
    y, _ = backbone(x, None, Context(mask=mask, reset=reset))
    close(y[:, 6:], backbone(second)[0])


def test_state_is_a_value(shake: Callable, close: Callable, tmp_path) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    _, state = backbone(torch.randn(3, 6, 32))
    copy = State.load(_saved(state, tmp_path / "state.safetensors"))
    close(copy, state.detach())
    picked = state.select([2, 0, 2])
    x = torch.randn(3, 4, 32)
    close(backbone(x, picked)[0][1], backbone(x[1:2], state.select([0]))[0][0])
    assert not any(t.requires_grad for _, t in state.detach().named_tensors())
    # 2C + N C numbers per layer and row, as the reference page counts them.
    assert state.size == 3 * 2 * (2 * 32 + 8 * 32)


def _saved(state: State, path):
    state.save(path)
    assert list(path.parent.iterdir()) == [path], "nothing but the file is left"
    return path


def test_loading_something_else_as_state_is_refused(tmp_path) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot read a state"):
        State.load(path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds 'weight'"):
        State.load(path)


def test_a_trained_initial_state_gets_gradients_shared_by_the_batch() -> None:
    mix = TimeMix(32, head_dim=8)
    nn.init.normal_(mix.output.weight)
    start = nn.Parameter(torch.randn(4, 8, 8))
    y, *_ = mix(torch.randn(5, 7, 32), {"wkv": start})
    y.square().sum().backward()
    assert start.grad is not None
    assert start.grad.shape == start.shape
    assert start.grad.abs().sum() > 0


def test_a_state_of_another_depth_is_refused() -> None:
    _, state = Backbone(32, 2, head_dim=8)(torch.randn(1, 3, 32))
    with pytest.raises(ValueError, match="state is of 2 layers, this backbone has 3"):
        Backbone(32, 3, head_dim=8)(torch.randn(1, 3, 32), state)
