"""flash-linear-attention's folders: both ways, older layouts, configurations that would mean another model.

That the names and shapes are really fla's is shown in tests/parity/test_fla.py, against fla itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoint import load_fla, save_fla
from core.checkpoint.blinkdl import to_blinkdl
from core.checkpoint.fla import from_fla, from_fla_name, to_fla, to_fla_name
from core.errors import UserError
from core.lm import RWKV7LM

MakeLM = Callable[..., RWKV7LM]
FLA_EPS = {"lora_ranks": [4, 5, 6, 7], "gn_eps": 16 * 1e-5}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def lm(random_lm: MakeLM) -> RWKV7LM:
    return random_lm(mixer_kwargs={"rwkv7": FLA_EPS})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_round_trip(lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path, eos_token_id=7)
    back = load_fla(tmp_path)
    theirs = back.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in lm.state_dict().items())
    assert torch.equal(lm(TOKENS)[0], back(TOKENS)[0])
    config = json.loads((tmp_path / "config.json").read_text())
    sizes = ("hidden_size", "head_dim", "decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")
    assert [config[key] for key in sizes] == [32, 16, 4, 5, 6, 7]
    assert (config["eos_token_id"], config["fuse_norm"], config["torch_dtype"]) == (7, False, "float32")


def test_maps_are_each_others_opposite(lm: RWKV7LM) -> None:
    tensors = to_blinkdl(lm.state_dict())
    names = [to_fla_name(name) for name in tensors]
    assert len(set(names)) == len(names)
    assert [from_fla_name(name) for name in names] == list(tensors)
    back = from_fla(to_fla(tensors))
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], x) for name, x in tensors.items())


def test_stacked_token_shift_of_older_files(lm: RWKV7LM, tmp_path: Path) -> None:
    """Version 1 of fla's layer held one x_x (6, C), rows r, w, k, v, a, g."""
    save_fla(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        prefix = f"model.layers.{layer}.attn.x_"
        tensors[f"{prefix}x"] = torch.cat([tensors.pop(f"{prefix}{mix}").flatten(1) for mix in "rwkvag"][0:6]).view(
            6, 32
        )
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(lm(TOKENS)[0], load_fla(tmp_path)(TOKENS)[0])


def test_shards(lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(lm(TOKENS)[0], load_fla(tmp_path)(TOKENS)[0])
    index["weight_map"][names[0]] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        load_fla(tmp_path)


def test_tied_head_and_norms_without_bias(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm(mixer_kwargs={"rwkv7": FLA_EPS})
    with torch.no_grad():
        lm.head.weight.copy_(lm.emb.weight)
        for name, parameter in lm.named_parameters():
            if ".ln" in name and ".ln_x" not in name and name.endswith("bias"):
                parameter.zero_()
    save_fla(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    left_out = [name for name in tensors if name.endswith("norm.bias") and "g_norm" not in name] + ["lm_head.weight"]
    assert len(left_out) == 3 * 2 + 1 + 1 + 1
    save_file({name: x for name, x in tensors.items() if name not in left_out}, tmp_path / "model.safetensors")
    edit_config(tmp_path, tie_word_embeddings=True, norm_bias=False)
    assert torch.equal(lm(TOKENS)[0], load_fla(tmp_path)(TOKENS)[0])


def test_eps_follows_the_config(lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    edit_config(tmp_path, norm_eps=1e-3)
    back = load_fla(tmp_path)
    assert back.backbone.blocks[1].att.gn_eps == pytest.approx(16e-3)
    assert back.backbone.ln_out.eps == back.backbone.blocks[0].ln0.eps == 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gla"}, "model_type is 'gla'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"norm_first": False}, "norm_first is False"),
        ({"attn": {"layers": [1]}}, "attn is"),
        ({"head_dim": 32}, "config.json says head_dim 32, the tensors say 16"),
    ],
)
def test_another_model_is_refused(lm: RWKV7LM, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    save_fla(lm, tmp_path)
    edit_config(tmp_path, **change)
    with pytest.raises(UserError, match=sentence):
        load_fla(tmp_path)


def test_left_over_tensors_keep_their_own_name(lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"model.layers.0.adapter.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"left over model\.layers\.0\.adapter\.weight\.$"):
        load_fla(tmp_path)


def test_missing_tensors_are_called_by_flas_names(lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.attn.w_lora.lora.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing model\.layers\.1\.attn\.w_lora\.lora\.2\.bias\.$"):
        load_fla(tmp_path)


def test_group_norm_eps_that_fla_cannot_have(random_lm: MakeLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gn_eps 0.00064, expected 0.00016"):
        save_fla(random_lm(), tmp_path)
    save_fla(random_lm(dim=64, head_dim=64), tmp_path)  # the released models: head 64, both are 64e-5


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*config\.json"):
        load_fla(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no model"):
        load_fla(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_fla(tmp_path)
