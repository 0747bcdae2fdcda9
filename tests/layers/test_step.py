"""The compiled one-token step: what the layers give, and only where it gives that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from core import RWKV7LM, Backbone, Context, State, use_backend
from core.layers import step as compiled

OPTIONS: list[dict[str, object]] = [
    {},
    {"pre_norm": True},
    {"layer_scale": 0.5, "drop_path": 0.5, "final_norm": False},
    {"mixer_kwargs": {"rwkv7": {"bias": True, "output_bias": True, "iclr_scale": 2.0, "value_head_dim": 12}}},
    {"mixer_kwargs": {"rwkv7": {"gate": False, "bonus": False, "group_norm": False, "value_residual": False}}},
    {"mixer_kwargs": {"rwkv7": {"lora_ranks": [5, 6, 7, 3]}}, "hidden_dim": 51},
]


@pytest.fixture(autouse=True)
def _generating() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled functions that were called; skips where there is no compiler."""
    if compiled._library() is None:
        pytest.skip("the compiled step cannot be built on this machine")
    run, names = compiled._run, []

    def spy(name: str, call) -> None:
        names.append(name)
        run(name, call)

    monkeypatch.setattr(compiled, "_run", spy)
    return names


def by_layers(model: nn.Module, *inputs) -> tuple[Tensor, State]:
    with use_backend("reference"):
        return model(*inputs)


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 2), (1, 3), (4, 1), (5, 2)])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_a_step_is_what_the_layers_give(shake, close, calls, monkeypatch, options, batch, threads) -> None:
    monkeypatch.setattr(compiled, "_threads", lambda weights: threads)
    backbone = shake(Backbone(40, 3, head_dim=8, **options)).eval()
    x = torch.randn(batch, 9, 40)
    _, before = backbone(x[:, :5])
    states = {"ours": None, "ours, with a past": before}
    for name, state in states.items():
        wanted_state = state
        for t in range(5, 9):
            y, state = backbone(x[:, t : t + 1], state)
            wanted, wanted_state = by_layers(backbone, x[:, t : t + 1], wanted_state)
            close(y, wanted)
            close(state, wanted_state)
            assert wanted.std() > 0.1, name
    assert calls == ["rwkv7_step"] * 8


def test_the_same_call_gives_the_same_bits(shake, calls, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "_threads", lambda weights: 3)
    lm = shake(RWKV7LM(300, 64, 2, head_dim=16))
    token = torch.tensor([[7]])
    first, state = lm(token)
    for _ in range(20):
        again, again_state = lm(token)
        assert again.equal(first)
        assert all(
            a.equal(b) for (_, a), (_, b) in zip(again_state.named_tensors(), state.named_tensors(), strict=True)
        )
    assert set(calls) == {"rwkv7_step", "matrix_vector"}


def test_a_state_is_not_changed_and_may_be_shared_or_partial(shake, close, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x = torch.randn(1, 1, 32)
    trained = State(tuple({"att": {"wkv": torch.randn(4, 8, 8)}, "ffn": {}} for _ in range(2)))
    strided = State(
        tuple({"att": {"wkv": torch.randn(1, 4, 8, 8).mT}, "ffn": {"shift": torch.randn(32)}} for _ in "12")
    )
    for state in (trained, strided):
        copied = state.map(torch.clone)
        y, after = backbone(x, state)
        wanted, wanted_after = by_layers(backbone, x, copied)
        close(y, wanted)
        close(after, wanted_after)
        assert all(a.equal(b) for (_, a), (_, b) in zip(state.named_tensors(), copied.named_tensors(), strict=True))
    assert len(calls) == 2


def test_a_batch_is_its_rows(shake, close, calls) -> None:
    """Bit for bit, with states of their own, and one that all share."""
    backbone = shake(Backbone(32, 2, head_dim=8))
    x, few = torch.randn(6, 4, 32), torch.randn(6, 1, 32)
    _, own = backbone(x)
    shared = State(tuple({"att": {"wkv": torch.randn(4, 8, 8)}, "ffn": {"shift": torch.randn(32)}} for _ in "12"))
    for state in (None, own, shared):
        y, after = backbone(few, state)
        close(y, by_layers(backbone, few, state)[0])
        for i in range(6):
            alone, alone_after = backbone(few[i : i + 1], own.select([i]) if state is own else state)
            assert alone.equal(y[i : i + 1])
            pairs = zip(after.select([i]).named_tensors(), alone_after.named_tensors(), strict=True)
            assert all(a.equal(b) for (_, a), (_, b) in pairs)
    assert len(calls) == 3 * 7


def test_a_changed_model_is_noticed(shake, close, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x = torch.randn(1, 1, 32)
    att = backbone.blocks[1].att
    _, past = backbone(torch.randn(1, 3, 32))

    def replace_weight() -> None:
        att.key.weight = nn.Parameter(torch.randn(32, 32))

    def move_weight() -> None:
        att.key.weight.data = torch.randn(32, 32)

    def replace_module() -> None:
        att.receptance = nn.Linear(32, 32, bias=False)

    def change_in_place() -> None:
        att.value.weight.mul_(-1)

    def change_setting() -> None:
        att.iclr_scale = 1.7

    def change_eps() -> None:
        att.ln_x.eps = backbone.blocks[0].att.ln_x.eps = 0.5

    def replace_norm() -> None:
        backbone.ln_out = nn.LayerNorm(32, eps=3.0)

    def edit() -> None:
        att.wkv_edit = lambda inputs, ctx: inputs._replace(k=2 * inputs.k)

    for change in (
        replace_weight,
        move_weight,
        replace_module,
        change_in_place,
        change_setting,
        change_eps,
        replace_norm,
        edit,
    ):
        before = backbone(x, past)[0]
        change()
        y, state = backbone(x, past)
        wanted, wanted_state = by_layers(backbone, x, past)
        close(y, wanted)
        close(state, wanted_state)
        assert (y - before).abs().max() > 1e-3, change.__name__
    assert len(calls) == 15  # an edited layer is none of the step's business


def test_a_stack_that_grew_is_noticed(shake, close, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x = torch.randn(1, 1, 32)
    before = backbone(x)[0]
    backbone.blocks.append(copy.deepcopy(backbone.blocks[1]))
    backbone.num_layers = 3
    y, state = backbone(x)
    close(y, by_layers(backbone, x)[0])
    assert len(state.layers) == 3
    assert (y - before).abs().max() > 1e-3
    assert len(calls) == 2


def test_watchers_see_every_layer(shake, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    seen = []
    backbone(torch.randn(1, 1, 32))
    handle = backbone.blocks[1].att.key.register_forward_hook(lambda *_: seen.append(1))
    backbone(torch.randn(1, 1, 32))
    assert seen == [1]
    handle.remove()
    backbone(torch.randn(1, 1, 32))
    assert seen == [1]
    assert len(calls) == 2


@pytest.mark.parametrize(
    "other", ["attention", "quad", "bidirectional", "rope", "grouped", "double", "bfloat16", "many rows", "training"]
)
def test_what_it_does_not_do_goes_through_the_layers(shake, calls, other) -> None:
    kwargs: dict[str, object] = {
        "attention": {"mixer": ["rwkv7", "attention"]},
        "quad": {"token_shift": "quad"},
        "bidirectional": {"scan": "bidirectional"},
        "rope": {"mixer_kwargs": {"rwkv7": {"rope_theta": 100.0}}},
        "grouped": {"mixer_kwargs": {"rwkv7": {"kv_heads": 2}}},
        "training": {"drop_path": 0.1},
    }.get(other, {})
    backbone = shake(Backbone(32, 2, head_dim=8, **kwargs))
    work = sum(p.numel() for p in backbone.parameters())
    x = torch.randn(2 + compiled._MOST_WORK // work if other == "many rows" else 1, 1, 32)
    dtype = {"double": torch.float64, "bfloat16": torch.bfloat16}.get(other, torch.float32)
    y = backbone.to(dtype)(x.to(dtype), None, Context(grid=(1, 1)))[0]
    assert y.isfinite().all()
    assert y.dtype == dtype
    assert calls == []


def test_gradients_autocast_masks_and_named_backends_go_through_the_layers(shake, calls) -> None:
    lm = shake(RWKV7LM(50, 32, 2, head_dim=8))
    token = torch.tensor([[3]])
    with torch.enable_grad():
        assert lm(token)[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert lm(token)[0].dtype == torch.bfloat16
    for ctx in (Context(mask=torch.tensor([[True]])), Context(reset=torch.tensor([[True]])), Context(keep_state=False)):
        lm.backbone(lm.emb(token), None, ctx)
    by_layers(lm, token)
    assert calls == []
    with torch.inference_mode():
        lm(token)
    assert calls == ["rwkv7_step", "matrix_vector"]


def test_a_state_that_does_not_fit_is_the_layers_error(shake, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    wrong = State(tuple({"att": {"wkv": torch.zeros(1, 4, 8, 7)}, "ffn": {}} for _ in range(2)))
    with pytest.raises(ValueError, match="state must have shape"):
        backbone(torch.randn(1, 1, 32), wrong)
    assert calls == []


def test_a_model_that_stepped_can_be_copied_compiled_and_forgotten(shake, close, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    x = torch.randn(1, 1, 32)
    y, _ = backbone(x)
    close(copy.deepcopy(backbone)(x)[0], y)
    close(torch.compile(backbone, fullgraph=True, backend="aot_eager")(x)[0], y)
    assert backbone.blocks in compiled._plans
    known = len(compiled._plans)
    del backbone
    assert len(compiled._plans) < known


def test_the_last_logits_alone(shake, close, calls) -> None:
    lm = shake(RWKV7LM(50, 32, 2, head_dim=8))
    tokens = torch.randint(50, (3, 7))
    logits, state = lm(tokens)
    last, last_state = lm(tokens, last=True)
    assert last.shape == (3, 1, 50)
    close(last, logits[:, -1:])
    close(last_state, state)
    close(lm(tokens[:1], last=True)[0], logits[:1, -1:])
    assert calls == ["matrix_vector"]  # of one row


def test_nan_is_not_hidden(shake, calls) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8))
    for name in ("att.value.weight", "ffn.key.weight", "ffn.value.weight", "att.g1"):
        broken = copy.deepcopy(backbone)
        broken.blocks[1].get_parameter(name)[0].fill_(torch.nan)
        assert broken(torch.randn(1, 1, 32))[0].isnan().any(), name
    assert len(calls) == 4


@pytest.mark.parametrize("shift", ["causal", "none", "bidirectional", "quad"])
@pytest.mark.parametrize("mixer", ["rwkv7", "attention"])
def test_the_last_output_alone_spares_the_last_channel_mixer(shake, close, shift, mixer) -> None:
    backbone = shake(Backbone(32, 2, head_dim=8, mixer=["rwkv7", mixer], token_shift=shift))
    x, widths = torch.randn(2, 12, 32), []
    backbone.blocks[1].ffn.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    reset, mask = torch.zeros(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    reset[:, 11], mask[:, 10] = True, False
    contexts = [Context(grid=(3, 4))]
    contexts += [Context(reset=reset), Context(mask=mask)] if shift == "causal" else []
    for ctx in contexts:
        for start in (0, 11) if shift == "causal" and ctx.grid else (0,):  # also one token with a past
            past = backbone(x[:, :start])[1] if start else None
            wanted, wanted_state = backbone(x[:, start:], past, ctx)
            y, state = backbone(x[:, start:], past, ctx, last=True)
            close(y, wanted[:, -1:])
            close(state, wanted_state)
    least = {"causal": 2, "none": 1}.get(shift, 12) if mixer == "rwkv7" else 1
    assert widths[1] == least


def test_a_single_row_through_a_linear_layer(calls: list[str], close: Callable) -> None:
    for layer in (nn.Linear(33, 70), nn.Linear(7, 5, bias=False), nn.Linear(800, 1)):
        x = torch.randn(1, 2, layer.in_features)[:, :1]
        close(compiled.linear(layer, x), layer(x))
        close(compiled.linear(layer, x[0, 0]), layer(x[0, 0]))
    assert len(calls) == 6
    compiled.linear(nn.Linear(4, 4).double(), torch.randn(4).double())
    with pytest.raises(RuntimeError):
        compiled.linear(nn.Linear(4, 4), torch.randn(2, 2))
    assert len(calls) == 6
