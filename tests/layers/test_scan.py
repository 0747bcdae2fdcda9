"""Scans and shifts: each order against the plain forward walk over hand-permuted tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core import Backbone, Context, TimeMix, wkv7
from core.layers import SCANS, TOKEN_SHIFTS, WKVInputs, resolve_scan, scan_wkv7
from core.layers.token_shift import bidirectional_shift, quad_shift

GRID = (3, 5)
T = 15
ORDERS = {  # token indices in the order of the walk, written out by hand from the raster order
    "forward": torch.arange(T),
    "backward": torch.arange(T - 1, -1, -1),
    "down": torch.tensor([row * 5 + column for column in range(5) for row in range(3)]),
    "up": torch.tensor([row * 5 + column for column in range(5) for row in range(3)]).flip(0),
}


def inputs(heads: int = 4) -> WKVInputs:
    r, k, v = torch.randn(3, 2, T, heads, 8)
    kk = F.normalize(torch.randn(2, T, heads, 8), dim=-1)
    log_w = -0.6 * torch.rand(2, T, heads, 8)
    return WKVInputs(r, log_w, k, v, -kk, kk * torch.rand(2, T, heads, 8))


def walk(x: WKVInputs, order: str, **kwargs) -> tuple[Tensor, Tensor | None]:
    index = ORDERS[order]
    y, state = wkv7(*(t[:, index] for t in x), **kwargs)
    back = torch.empty_like(y)
    back[:, index] = y
    return back, state


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("layer", range(4))
def test_every_scan_equals_its_orders_walked_by_hand(name: str, layer: int) -> None:
    x, scan = inputs(), resolve_scan(name, layer, heads=4)
    got, state = scan_wkv7(x, scan, None, Context(grid=GRID))
    if scan.split:
        parts = [
            walk(WKVInputs(*t), order)
            for t, order in zip(zip(*(t.chunk(len(scan.orders), 2) for t in x), strict=True), scan.orders, strict=True)
        ]
        wanted = torch.cat([y for y, _ in parts], 2)
        wanted_state = torch.cat([s for _, s in parts], 1)
    else:
        parts = [walk(x, order) for order in scan.orders]
        wanted = torch.stack([y for y, _ in parts]).mean(0)
        wanted_state = torch.cat([s for _, s in parts], 1)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(state, wanted_state)


def test_alternating_scans_turn_with_the_layer() -> None:
    assert [resolve_scan("alternate", i, 1).orders[0] for i in range(3)] == ["forward", "backward", "forward"]
    assert [resolve_scan("alternate4", i, 1).orders[0] for i in range(5)] == [
        "forward",
        "backward",
        "down",
        "up",
        "forward",
    ]


@pytest.mark.parametrize("name", ["bidirectional", "split2", "cross4", "split4"])
def test_states_of_several_orders_come_in_and_go_out(name: str) -> None:
    x, scan = inputs(), resolve_scan(name, 0, heads=4)
    _, state = scan_wkv7(x, scan, None, Context(grid=GRID))
    assert state is not None
    y, _ = scan_wkv7(x, scan, state, Context(grid=GRID))
    count = len(scan.orders)
    heads = 4 // count if scan.split else 4
    shares = [t.chunk(count, 2) if scan.split else (t,) * count for t in x]
    parts = [
        walk(WKVInputs(*(s[i] for s in shares)), order, state=state[:, i * heads : (i + 1) * heads])[0]
        for i, order in enumerate(scan.orders)
    ]
    wanted = torch.cat(parts, 2) if scan.split else torch.stack(parts).mean(0)
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("name", ["backward", "bidirectional", "split2"])
def test_packed_sequences_do_not_meet_backwards_either(name: str) -> None:
    x, scan = inputs(), resolve_scan(name, 0, heads=4)
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[:, 6] = True
    y, _ = scan_wkv7(x, scan, None, Context(reset=reset))
    first, second = (
        scan_wkv7(WKVInputs(*(t[:, part] for t in x)), scan, None, Context())[0] for part in (slice(0, 6), slice(6, T))
    )
    torch.testing.assert_close(y, torch.cat((first, second), 1))


def test_columns_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="columns"):
        scan_wkv7(
            inputs(), resolve_scan("split4", 0, 4), None, Context(grid=GRID, reset=torch.ones(2, T, dtype=torch.bool))
        )


def test_transposing_the_image_swaps_rows_and_columns() -> None:
    x = inputs()
    turned = WKVInputs(*(t.unflatten(1, GRID).transpose(1, 2).flatten(1, 2) for t in x))
    rows, _ = scan_wkv7(x, resolve_scan("forward", 0, 4), None, Context(grid=GRID))
    columns, _ = scan_wkv7(turned, resolve_scan("alternate4", 2, 4), None, Context(grid=GRID[::-1]))
    torch.testing.assert_close(columns.unflatten(1, GRID[::-1]).transpose(1, 2).flatten(1, 2), rows)


def test_two_directions_see_everything_one_sees_the_past(shake: Callable) -> None:
    x = torch.randn(1, T, 32)
    changed = x.clone()
    changed[:, 7] += 1
    for scan, reach in (("forward", range(7, T)), ("backward", range(8)), ("bidirectional", range(T))):
        mix = shake(TimeMix(32, head_dim=8, token_shift="none", scan=scan))
        difference = (mix(x)[0] - mix(changed)[0]).abs().amax((0, 2))
        assert [t for t in range(T) if difference[t] > 1e-6] == list(reach)


def test_the_quad_shift_takes_each_neighbour() -> None:
    """A 3 x 3 grid numbered 1-9, two heads of four channels: left, right, upper, lower; zeros over the border."""
    numbers = torch.arange(1.0, 10).view(1, 9, 1).expand(1, 9, 8)
    shifted = quad_shift(numbers, (3, 3), heads=2)
    left = [0, 1, 2, 0, 4, 5, 0, 7, 8]
    right = [2, 3, 0, 5, 6, 0, 8, 9, 0]
    up = [0, 0, 0, 1, 2, 3, 4, 5, 6]
    down = [4, 5, 6, 7, 8, 9, 0, 0, 0]
    wanted = torch.tensor([left, right, up, down] * 2, dtype=torch.float32).T
    torch.testing.assert_close(shifted[0], wanted)


def test_the_bidirectional_shift_takes_previous_and_next() -> None:
    x = torch.arange(1.0, 5).view(1, 4, 1).expand(1, 4, 2)
    reset = torch.tensor([[False, False, True, False]])
    assert bidirectional_shift(x)[0].T.tolist() == [[0, 1, 2, 3], [2, 3, 4, 0]]
    assert bidirectional_shift(x, reset)[0].T.tolist() == [[0, 1, 0, 3], [2, 0, 4, 0]]


@pytest.mark.parametrize("shift", TOKEN_SHIFTS)
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_every_parameter_learns_under_every_scan_and_shift(scan: str, shift: str, mixer: str, shake: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8, mixer=mixer, scan=scan, token_shift=shift, layer_scale=0.5))
    y, _ = backbone(torch.randn(2, T, 32), None, Context(grid=GRID, keep_state=False))
    y.square().sum().backward()
    idle = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scan": "sideways"}, "unknown scan 'sideways': choose one of forward"),
        ({"token_shift": "diagonal"}, "unknown token shift 'diagonal': choose one of causal"),
        ({"scan": "split4", "head_dim": 16}, "divides the heads among 4 orders, got 2 heads"),
        ({"head_dim": 7}, "dim must be a multiple of head_dim, got dim 32 and head_dim 7"),
        ({"mixer": "rwkv8"}, "unknown token mixer 'rwkv8': did you mean 'rwkv7'"),
        ({"mixer": ["rwkv7", "attention", "rwkv7"]}, "whose length divides 2 layers"),
        ({"mixer_kwargs": {"attention": {}}}, "but the layers use"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Backbone(32, **{"num_layers": 2, "head_dim": 8, **arguments})


def test_a_missing_grid_is_told() -> None:
    with pytest.raises(ValueError, match=r"quad shift needs ctx\.grid"):
        Backbone(32, 1, head_dim=8, token_shift="quad")(torch.randn(1, 6, 32), None, Context(grid=(2, 2)))
