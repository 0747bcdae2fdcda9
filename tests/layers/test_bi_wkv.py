"""Vision-RWKV's attention over both directions: the mean it defines, its gradients, and the block around it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core import Backbone, Context
from core.layers import BiWKV, GatedChannelMix
from core.layers.bi_wkv import LIMIT, bi_wkv, bi_wkv_recurrence


def by_definition(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """Every pair's exponent written out, and a softmax over them (arXiv 2403.02308, equation 5)."""
    tokens = torch.arange(k.shape[1])
    distance = (tokens[:, None] - tokens).abs()[None, :, :, None]
    decay, bonus = (x.reshape(-1, 1, 1, x.shape[-1]) for x in (decay, bonus))
    exponent = torch.where(distance > 0, k[:, None] - (distance - 1) * decay, k[:, None] + bonus)
    return (exponent.softmax(dim=2) * v[:, None]).sum(dim=2)


def problem(tokens: int, strength: float = 5.0, keys: float = 1.0, channels: int = 6) -> list[Tensor]:
    """Keys, values, decays from -strength to strength over the whole sequence, bonuses; float64."""
    k, v = (torch.randn(2, tokens, channels, dtype=torch.float64) for _ in range(2))
    decay = torch.linspace(-1, 1, channels, dtype=torch.float64) * strength / tokens
    return [k * keys, v, decay, torch.randn(channels, dtype=torch.float64) / tokens]


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad(y, leaves, weight)


@pytest.mark.parametrize("function", [bi_wkv, bi_wkv_recurrence])
@pytest.mark.parametrize("tokens", [1, 2, 3, 25])
def test_it_is_the_mean_that_the_paper_defines(function: Callable[..., Tensor], tokens: int) -> None:
    inputs = problem(tokens)
    inputs[3] = inputs[3] * 10
    torch.testing.assert_close(function(*inputs), by_definition(*inputs))


@pytest.mark.parametrize("tokens", [511, 512, 513, 700])
def test_long_sequences_are_summed_in_pieces(tokens: int) -> None:
    inputs = problem(tokens, channels=2)
    y, gradients = with_gradients(bi_wkv, inputs)
    wanted, wanted_gradients = with_gradients(by_definition, inputs)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(gradients, wanted_gradients)


@pytest.mark.parametrize("function", [bi_wkv, bi_wkv_recurrence])
@pytest.mark.parametrize("shape", [(4,), (1, 1, 4), (2, 1, 4)])
def test_gradients(function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    inputs = [
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 7, 4), (2, 7, 4), shape, shape)
    ]
    assert torch.autograd.gradcheck(function, inputs)


# Keys of 100 leave nearly all weight on single tokens; a decay of 29 makes weights range over e^29.
@pytest.mark.parametrize(("keys", "strength"), [(1, 5), (100, 5), (1, 29), (100, 29), (1000, 29)])
@pytest.mark.parametrize("tokens", [3, 196])
def test_float32_is_right_for_hard_inputs(tokens: int, keys: float, strength: float) -> None:
    inputs = [x.float() for x in problem(tokens, strength, keys)]
    y, gradients = with_gradients(bi_wkv, inputs)
    wanted, wanted_gradients = with_gradients(by_definition, [x.double() for x in inputs])
    assert (y - wanted).abs().max() < 2e-6
    for got, true in zip(gradients, wanted_gradients, strict=True):
        assert (got - true).norm() < 2e-4 * true.norm() + 1e-3  # with one token taking all, nothing moves the weights


def test_beyond_the_limit_it_goes_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("core.layers.bi_wkv.bi_wkv_recurrence", lambda *x: calls.append(1) or bi_wkv_recurrence(*x))
    for factor in (0.9, 1.1):
        for place in (2, 3):
            inputs = problem(20)
            inputs[place] = torch.full((6,), factor * LIMIT / (20 if place == 2 else 1), dtype=torch.float64)
            torch.testing.assert_close(bi_wkv(*inputs), by_definition(*inputs))
    assert len(calls) == 2
    inputs = [x.float() for x in problem(50, 2000.0, 50.0)]
    y, gradients = with_gradients(bi_wkv, inputs)
    wanted, _ = with_gradients(by_definition, [x.double() for x in inputs])
    assert (y - wanted).abs().max() < 1e-3  # exponents of 2000 are rounded by 1e-4
    assert all(x.isfinite().all() for x in gradients)


def test_low_precision_is_computed_in_float32() -> None:
    inputs = [x.bfloat16() for x in problem(64)]
    y = bi_wkv(*inputs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, bi_wkv(*(x.float() for x in inputs)).bfloat16())


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_compiles_to_one_graph_with_equal_gradients() -> None:
    inputs = [x.float() for x in problem(30)]
    compiled = torch.compile(bi_wkv, fullgraph=True, backend="aot_eager")
    got, wanted = (with_gradients(function, inputs) for function in (compiled, bi_wkv))
    torch.testing.assert_close(got, wanted)
    wild = compiled(inputs[0], inputs[1], inputs[2] * 1000, inputs[3] * 1000)
    assert wild.isfinite().all(), "nothing looks at parameters there; they count as the limit"


# -------------------------------------------------------------------------------------------------------- the layers


def neighbour(x: Tensor, row: int, column: int, channel: int) -> float:
    """What Q-Shift puts on a place: a quarter of the channels from the left, right, upper, lower one; else 0."""
    height, width, dim = x.shape
    step = ((0, -1), (0, 1), (-1, 0), (1, 0))[4 * channel // dim]
    row, column = row + step[0], column + step[1]
    return float(x[row, column, channel]) if 0 <= row < height and 0 <= column < width else 0.0


def official_mix(x: Tensor, mu: Tensor) -> Tensor:
    """x (H, W, C) mu + neighbours (1 - mu), place by place, as (H W, C)."""
    height, width, dim = x.shape
    shifted = torch.tensor([[[neighbour(x, i, j, c) for c in range(dim)] for j in range(width)] for i in range(height)])
    return (x * mu.flatten() + shifted * (1 - mu.flatten())).flatten(0, 1)


@pytest.mark.parametrize("key_norm", [False, True])
@torch.no_grad()
def test_the_token_mixer_is_vision_rwkvs(shake: Callable[..., nn.Module], key_norm: bool) -> None:
    mixer = shake(BiWKV(8, layer_id=1, num_layers=3, key_norm=key_norm))
    assert isinstance(mixer, BiWKV)
    image = torch.randn(3, 5, 8)
    r, k, v = (
        official_mix(image, mix) @ linear.weight.T
        for mix, linear in (
            (mixer.spatial_mix_r, mixer.receptance),
            (mixer.spatial_mix_k, mixer.key),
            (mixer.spatial_mix_v, mixer.value),
        )
        if mix is not None
    )
    y = by_definition(k[None], v[None], mixer.spatial_decay / 15, mixer.spatial_first / 15)
    if mixer.key_norm is not None:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * mixer.key_norm.weight + mixer.key_norm.bias
    wanted = (r.sigmoid() * y) @ mixer.output.weight.T
    got, state, _ = mixer(image.view(1, 15, 8), None, Context(grid=(3, 5)))
    torch.testing.assert_close(got, wanted)
    assert state == {}


@pytest.mark.parametrize("key_norm", [False, True])
@torch.no_grad()
def test_the_channel_mixer_is_vision_rwkvs(shake: Callable[..., nn.Module], key_norm: bool) -> None:
    mixer = shake(GatedChannelMix(8, hidden_dim=12, token_shift="quad", shift_heads=2, key_norm=key_norm))
    assert isinstance(mixer, GatedChannelMix)
    assert mixer.spatial_mix_k is not None
    assert mixer.spatial_mix_r is not None
    image = torch.randn(3, 5, 8)
    hidden = (official_mix(image, mixer.spatial_mix_k) @ mixer.key.weight.T).clamp(min=0) ** 2
    if mixer.key_norm is not None:
        hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        hidden = hidden * mixer.key_norm.weight + mixer.key_norm.bias
    gate = (official_mix(image, mixer.spatial_mix_r) @ mixer.receptance.weight.T).sigmoid()
    got, *_ = mixer(image.view(1, 15, 8), None, Context(grid=(3, 5)))
    torch.testing.assert_close(got, (gate * (hidden @ mixer.value.weight.T))[None])


def test_the_starting_values_by_hand() -> None:
    """Channel 5 of 16, layer 1 of 3."""
    mixer, channels = BiWKV(16, layer_id=1, num_layers=3), GatedChannelMix(16, layer_id=1, num_layers=3)
    up, down, ratio = 1 / 2, 2 / 3, 5 / 16
    wanted = {
        "spatial_decay": -5 + 8 * (5 / 15) ** (0.7 + 1.3 * up), "spatial_first": math.log(0.3) - 0.5,
        "spatial_mix_k": ratio**down, "spatial_mix_v": ratio**down + 0.3 * up, "spatial_mix_r": ratio ** (0.5 * down),
    }  # fmt: skip
    assert {name: getattr(mixer, name).flatten()[5].item() for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert mixer.spatial_first[:3].tolist() == pytest.approx([math.log(0.3) + x for x in (0, 0.5, -0.5)])
    for name in ("spatial_mix_k", "spatial_mix_r"):
        assert getattr(channels, name).flatten()[5].item() == pytest.approx(ratio**down)
    single = BiWKV(16)  # the official code divides by zero there
    assert all(p.isfinite().all() for p in single.parameters())


@pytest.mark.parametrize("shift", ["quad", "bidirectional", "causal", "none"])
def test_every_parameter_learns_with_any_shift(shift: str, shake: Callable[..., nn.Module]) -> None:
    backbone = shake(Backbone(16, 2, head_dim=8, mixer="bi_wkv", token_shift=shift, scan="split2"))
    y, state = backbone(torch.randn(2, 12, 16), None, Context(grid=(4, 3)))
    y.square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(layer["att"] == {} for layer in state.layers)


def test_it_mixes_with_other_layers(shake: Callable[..., nn.Module]) -> None:
    backbone = shake(Backbone(16, 4, head_dim=8, mixer=["rwkv7", "bi_wkv"], token_shift="quad", scan="bidirectional"))
    assert isinstance(backbone, Backbone)
    kinds = [(type(block.att).__name__, type(block.ffn).__name__) for block in backbone.blocks]
    assert kinds == 2 * [("TimeMix", "ChannelMix"), ("BiWKV", "GatedChannelMix")]
    x, ctx = torch.randn(1, 12, 16), Context(grid=(4, 3), keep_state=False)
    gradients = []
    for enable in (False, True):
        backbone.zero_grad()
        backbone.set_grad_checkpointing(enable)
        backbone(x, None, ctx)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("shift", ["none", "causal"])
def test_padded_rows_equal_each_alone(shift: str, shake: Callable[..., nn.Module], close: Callable[..., None]) -> None:
    mixer, x, lengths = shake(BiWKV(8, token_shift=shift)), torch.randn(3, 9, 8), (9, 4, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    y, *_ = mixer(x, None, Context(mask=mask))
    for row, length in enumerate(lengths):
        close(y[row : row + 1, :length], mixer(x[row : row + 1, :length])[0])
    nothing, *_ = mixer(x, None, Context(mask=torch.zeros(3, 9, dtype=torch.bool)))
    assert nothing.isfinite().all()


def test_what_it_cannot_do_is_said() -> None:
    mixer, x = BiWKV(8, token_shift="none"), torch.randn(1, 4, 8)
    with pytest.raises(ValueError, match="cannot go on from a state"):
        mixer(x, {"shift": x[:, 0]})
    with pytest.raises(ValueError, match="takes no resets"):
        mixer(x, None, Context(reset=torch.zeros(1, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="needs ctx.grid"):
        BiWKV(8)(x)
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        BiWKV(6)
    with pytest.raises(ValueError, match="channel_kwargs names"):
        Backbone(16, 1, head_dim=8, channel_kwargs={"rwkv4": {"key_norm": True}})


@pytest.mark.parametrize("mixer", ["bi_wkv", "rwkv7"])
@torch.no_grad()
def test_post_norm_puts_the_norm_on_the_branch(mixer: str, shake: Callable[..., nn.Module]) -> None:
    """One token too, where RWKV-7 would otherwise take its compiled step."""
    backbone = shake(Backbone(16, 1, head_dim=8, mixer=mixer, token_shift="causal", post_norm=True, layer_scale=0.5))
    assert isinstance(backbone, Backbone)
    block = backbone.blocks[0]
    for tokens in (1, 5):
        x = torch.randn(1, tokens, 16)
        z = x + block.gamma1 * block.ln1(block.att(x)[0])
        z = z + block.gamma2 * block.ln2(block.ffn(z)[0])
        torch.testing.assert_close(backbone(x)[0], backbone.ln_out(z))
