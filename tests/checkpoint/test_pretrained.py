"""Greylag's own folders of language models: any backbone that is plain data, and nothing that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.checkpoint import load_pretrained, save_pretrained
from core.errors import UserError
from core.lm import RWKV7LM

MakeLM = Callable[..., RWKV7LM]
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize(
    "backbone",
    [
        {},
        {"hidden_dim": 48, "ln_eps": 1e-3},
        {"mixer": ["attention", "rwkv7", "rwkv7"], "token_shift": "bidirectional", "scan": "bidirectional"},
        {"mixer": "attention", "mixer_kwargs": {}},
        {"mixer_kwargs": {"rwkv7": {"iclr_scale": 2.0, "gate": False, "gn_eps": 1e-3, "rope_theta": 100.0}}},
    ],
)
def test_round_trip(random_lm: MakeLM, tmp_path: Path, backbone: dict[str, object]) -> None:
    lm = random_lm(**backbone)
    save_pretrained(lm, tmp_path)
    back = load_pretrained(tmp_path)
    assert back.config == json.loads(json.dumps(lm.config))
    assert list(back.state_dict()) == list(lm.state_dict())
    assert torch.equal(lm(TOKENS)[0], back(TOKENS)[0])
    assert not any(tensor.is_meta for tensor in (*back.parameters(), *back.buffers()))


def test_trains_on_after_loading(random_lm: MakeLM, tmp_path: Path) -> None:
    save_pretrained(random_lm(), tmp_path)
    lm = load_pretrained(tmp_path).train()
    lm(TOKENS)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())


def test_hooks_cannot_be_saved(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm(mixer_kwargs={"rwkv7": {"wkv_edit": lambda inputs, ctx: inputs}})
    with pytest.raises(UserError, match="not plain data"):
        save_pretrained(lm, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit(random_lm: MakeLM, tmp_path: Path) -> None:
    save_pretrained(random_lm(), tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())

    def refused(change: dict[str, object], sentence: str) -> None:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=sentence):
            load_pretrained(tmp_path)

    refused({"model": "vision"}, "of model 'vision', expected 'rwkv7_lm'")
    refused({"config": {**good["config"], "num_layers": 4}}, r"missing backbone\.blocks\.3")
    refused({"config": {**good["config"], "vocab_size": 51}}, r"emb\.weight of shape \(50, 32\) where \(51, 32\)")
    refused({"config": {**good["config"], "widht": 3}}, "describes no model: .*widht")
    refused({"config": {**good["config"], "head_dim": 15}}, "describes no model: .*head_dim 15")


def test_broken_safetensors(random_lm: MakeLM, tmp_path: Path) -> None:
    save_pretrained(random_lm(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_pretrained(tmp_path)
