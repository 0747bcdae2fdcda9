"""The hooks later systems stand on, and the flags that converted transformers need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core import Backbone, Context, TimeMix, token_mixers
from core.layers import StateReader, WKVInputs


def test_wkv_edit_changes_what_the_operator_sees(shake: Callable) -> None:
    mix = shake(TimeMix(32, head_dim=8))
    x = torch.randn(2, 6, 32)
    plain, *_ = mix(x)
    seen = []

    def forget(inputs: WKVInputs, ctx: Context) -> WKVInputs:
        seen.append(ctx.condition)
        return inputs._replace(k=inputs.k * 0, b=inputs.b * 0)

    mix.wkv_edit = forget
    edited, state, _ = mix(x, None, Context(condition="text"))
    assert seen == ["text"]
    assert not torch.allclose(plain, edited)
    assert state["wkv"].abs().max() == 0, "nothing was written"


def test_readout_asks_the_same_recurrence(shake: Callable) -> None:
    x = torch.randn(2, 13, 32)
    found = {}

    def read(reader: StateReader, y: torch.Tensor, inputs: WKVInputs, ctx: Context) -> torch.Tensor:
        found["same"] = reader.query(inputs.r)
        found["y"] = y
        found["states"] = reader.states(every=5)
        return y + reader.query(inputs.k)

    mix = shake(TimeMix(32, head_dim=8))
    plain, state, _ = mix(x)
    mix.readout = read
    changed, *_ = mix(x)
    torch.testing.assert_close(found["same"], found["y"])
    assert found["states"].shape == (2, 3, 4, 8, 8)
    torch.testing.assert_close(found["states"][:, -1], state["wkv"])
    torch.testing.assert_close(found["states"][:, 0], mix(x[:, :5])[1]["wkv"])
    assert not torch.allclose(plain, changed)


def test_states_at_chunk_ends_need_one_forward_scan(shake: Callable) -> None:
    mix = shake(TimeMix(32, head_dim=8, scan="bidirectional"))
    mix.readout = lambda reader, y, inputs, ctx: reader.states(4)[:, 0]
    with pytest.raises(ValueError, match="forward scan alone"):
        mix(torch.randn(1, 4, 32))


def test_a_new_mixer_is_an_addition() -> None:
    @token_mixers.register("mean_so_far")
    class MeanSoFar(nn.Module):
        def __init__(self, dim: int, **_: object) -> None:
            super().__init__()

        def forward(self, x, state, ctx):
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None], {}, ctx

    try:
        y, _ = Backbone(32, 2, head_dim=8, mixer=["mean_so_far", "rwkv7"])(torch.randn(1, 4, 32))
        assert y.shape == (1, 4, 32)
        with pytest.raises(ValueError, match="registered already"):
            token_mixers.register("mean_so_far")(MeanSoFar)
    finally:
        del token_mixers["mean_so_far"]


@pytest.mark.parametrize(
    "flags",
    [
        {"gate": False},
        {"bonus": False},
        {"group_norm": False},
        {"value_head_dim": 12},
        {"kv_heads": 2},
        {"bias": True, "output_bias": True},
        {"rope_theta": 100.0},
        {"iclr_scale": 2.0},
        {"lora_ranks": [4, 5, 6, 7]},
        {"gate": False, "bonus": False, "group_norm": False, "kv_heads": 1, "rope_theta": 10.0},
    ],
)
def test_every_flag_streams_and_learns(flags: dict, shake: Callable, close: Callable) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8, mixer_kwargs={"rwkv7": flags}))
    x = torch.randn(2, 11, 32)
    whole, final = backbone(x)
    first, state = backbone(x[:, :4])
    second, state = backbone(x[:, 4:], state)
    close(torch.cat((first, second), 1), whole)
    close(state, final)
    whole.square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_iclr_scale_2_admits_a_negative_eigenvalue() -> None:
    """One step's transition along kk is w - iclr_scale * iclr: below zero at most with the scale."""
    for scale in (1.0, 2.0):
        seen = []
        mix = TimeMix(8, head_dim=8, iclr_scale=scale, wkv_edit=lambda i, ctx, seen=seen: seen.append(i) or i)
        nn.init.constant_(mix.a0, 20.0)  # iclr = 1
        nn.init.constant_(mix.w0, -20.0)  # no decay
        with torch.no_grad():
            mix(torch.randn(1, 1, 8))
        x = seen[0]
        step = torch.diag(x.log_w[0, 0, 0].exp()) + torch.outer(x.a[0, 0, 0], x.b[0, 0, 0])
        assert torch.linalg.eigvals(step).real.min().item() == pytest.approx(1 - scale, abs=1e-4)


def test_the_value_residual_needs_a_first_layer() -> None:
    with pytest.raises(ValueError, match=r"ctx\.v_first is None"):
        TimeMix(32, head_dim=8, layer_id=1, num_layers=2)(torch.randn(1, 3, 32))


def test_in_a_hybrid_the_first_rwkv7_layer_gives_the_value() -> None:
    backbone = Backbone(32, 4, head_dim=8, mixer=["attention", "rwkv7"])
    assert [hasattr(block.att, "v0") for block in backbone.blocks] == [False, False, False, True]
