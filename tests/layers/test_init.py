"""RWKV-7's starting values and optimiser groups, against the published table and against fla's own module."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core import RWKV7LM, Backbone, TimeMix
from core.init import LoRARanks, parameter_groups


def test_the_lora_ranks_follow_the_current_table() -> None:
    table = {
        256: (32, 32, 32, 64), 512: (64, 64, 32, 128), 768: (64, 64, 32, 128), 1024: (64, 64, 64, 160),
        2048: (128, 128, 64, 224), 2560: (128, 128, 96, 256), 4096: (160, 160, 96, 320),
    }  # fmt: skip
    assert {dim: tuple(LoRARanks.of(dim)) for dim in table} == table


def test_a_few_values_by_hand() -> None:
    """Layer 1 of 3, channel 5 of 16, heads of 8: the formulas of RWKV-LM's train_temp worked out in Python."""
    mix = TimeMix(16, layer_id=1, num_layers=3, head_dim=8)
    up, down, n = 0.5, 2 / 3, 5
    z = (5 - 3.5) / 3.5
    zz, lin = z * abs(z), n / 15 - 0.5
    wanted = {
        "x_r": 1 - (n / 16) ** (0.2 * down), "x_w": 1 - (n / 16) ** (0.9 * down), "x_k": 1 - (n / 16) ** (0.7 * down),
        "w0": -6 + 6 * (n / 15) ** (1 + up**0.3) + 0.5 + 2.5 * zz, "a0": -0.19 + 0.3 * zz + 0.4 * lin,
        "v0": 0.73 - 0.4 * lin, "k_k": 0.71 - 0.1 * lin, "k_a": 1.02,
    }  # fmt: skip
    got = {name: getattr(mix, name).flatten()[n].item() for name in wanted}
    assert got == pytest.approx(wanted, rel=1e-5)
    assert mix.r_k.unique().tolist() == pytest.approx([-0.04])
    assert mix.ln_x is not None
    assert mix.ln_x.weight.unique().tolist() == pytest.approx([(2 / 3) ** 0.7])
    assert mix.output.weight.abs().max() == 0
    assert mix.w1.abs().max() == 0
    gram = mix.w2 @ mix.w2.T if mix.w2.shape[0] <= 16 else mix.w2.T @ mix.w2
    torch.testing.assert_close(gram, torch.eye(16) * 0.01 * 2, atol=1e-5, rtol=1e-5)  # 32 x 16: gain^2 = 0.1^2 * 32/16


@pytest.mark.filterwarnings("ignore")  # fla's import on a machine without a GPU
def test_the_vectors_equal_flas() -> None:
    """flash-linear-attention's RWKV-7 module initialises from the same table, written independently."""
    rwkv7 = pytest.importorskip("fla.models.rwkv7", reason="flash-linear-attention is not installed")
    config = rwkv7.RWKV7Config(
        hidden_size=128, num_hidden_layers=3, head_dim=64, vocab_size=100, decay_low_rank_dim=None,
        gate_low_rank_dim=None, a_low_rank_dim=None, v_low_rank_dim=None,
    )  # fmt: skip
    theirs = rwkv7.RWKV7ForCausalLM(config).model.layers
    ours = Backbone(128, 3)
    for i in range(3):
        attn, att, ffn = theirs[i].attn, ours.blocks[i].att, ours.blocks[i].ffn
        pairs = {
            name: (getattr(att, name), getattr(attn, name))
            for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "r_k")
        }
        pairs |= {
            f"{ours_}0": (getattr(att, f"{ours_}0"), getattr(attn, f"{ours_}_lora").lora[2].bias)
            for ours_ in ("w", "a")
        }
        pairs["ffn.x_k"] = (ffn.x_k, theirs[i].ffn.x_k)
        pairs["ln_x"] = (att.ln_x.weight, attn.g_norm.weight)
        if i:
            pairs["v0"] = (att.v0, attn.v_lora.lora[2].bias)
        for name, (mine, other) in pairs.items():
            torch.testing.assert_close(
                mine.flatten(), other.float().flatten(), atol=2e-3, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
        for mine, other in (
            (att.receptance, attn.r_proj),
            (att.key, attn.k_proj),
            (att.value, attn.v_proj),
            (ffn.key, theirs[i].ffn.key),
        ):
            assert mine.weight.std().item() == pytest.approx(other.weight.float().std().item(), rel=0.05)


def test_a_single_layer_starts_finite_and_learns() -> None:
    model = RWKV7LM(50, 32, 1, head_dim=8)
    assert all(p.isfinite().all() for p in model.parameters())
    optimiser = torch.optim.AdamW(parameter_groups(model, lr=1e-2, weight_decay=0.1))
    tokens = torch.arange(32).repeat(4, 1) % 7
    losses = []
    for _ in range(30):
        logits, _ = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(math.log(50), rel=0.1), "an untrained model guesses nearly evenly"
    assert losses[-1] < 0.1


def test_weight_decay_falls_on_matrices_alone() -> None:
    model = RWKV7LM(50, 32, 2, head_dim=8)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g["name"]: g for g in parameter_groups(model, lr=1e-3, weight_decay=0.1)}
    members = {name: {names[id(p)] for p in g["params"]} for name, g in groups.items()}
    leaf = lambda names: {name.split(".", 3)[-1] if "blocks" in name else name for name in names}  # noqa: E731
    assert leaf(members["matrix"]) == {
        "emb.weight", "head.weight", "att.receptance.weight", "att.key.weight", "att.value.weight",
        "att.output.weight", "ffn.key.weight", "ffn.value.weight",
    }  # fmt: skip
    assert leaf(members["decay_bias"]) == {"att.w0"}
    assert sum(len(m) for m in members.values()) == len(names)
    assert (groups["matrix"]["weight_decay"], groups["vector"]["weight_decay"], groups["decay_bias"]["lr"]) == (
        0.1,
        0.0,
        2e-3,
    )
    model.head.weight.requires_grad_(False)
    assert "head.weight" not in {names[id(p)] for g in parameter_groups(model, 1e-3, 0.1) for p in g["params"]}
