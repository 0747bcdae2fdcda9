"""Our language model against flash-linear-attention's RWKV7ForCausalLM itself, both ways.

fla's kernels need a GPU driver. On a CPU its modules and their forward run with the kernels replaced by fla's own
plain PyTorch references; the test marked gpu runs them as they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from core.checkpoint import load_fla, save_fla
from core.lm import RWKV7LM

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="flash-linear-attention is not installed"),
    pytest.mark.filterwarnings("ignore:According to Bo:UserWarning"),  # fla's standing notice on its RWKV layers
]


@pytest.fixture(scope="module")
def modeling() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import's own affair: Triton without a GPU, deprecations
        return importlib.import_module("fla.models.rwkv7.modeling_rwkv7")


@pytest.fixture
def lm(hard_lm: Callable[..., RWKV7LM]) -> RWKV7LM:
    ranks = {"lora_ranks": [24, 40, 16, 56], "gn_eps": 32e-5}
    return hard_lm(100, 128, 3, head_dim=32, hidden_dim=384, mixer_kwargs={"rwkv7": ranks})


def plain_chunk_rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float, **_: Any
) -> tuple[Tensor, None]:
    """fla's own recurrence in PyTorch; it scales queries by K^-0.5 and wants heads before time."""
    naive = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive")
    r, w, k, v, a, b = (x.transpose(1, 2) for x in (r, w, k, v, a, b))
    y, _state = naive.dplr_recurrence(r * (scale * r.shape[-1] ** 0.5), k, v, a, b, w)
    return y.transpose(1, 2), None


def plain_token_shift(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return importlib.import_module("fla.modules.token_shift").token_shift_ref(x), None


@pytest.fixture
def without_kernels(modeling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = importlib.import_module("fla.layers.rwkv7")
    ops = {name: importlib.import_module(f"fla.ops.rwkv7.{name}") for name in ("fused_addcmul", "fused_k_update")}
    correction = importlib.import_module("fla.ops.rwkv7.gate_output_correction")
    monkeypatch.setattr(layer, "chunk_rwkv7", plain_chunk_rwkv7)
    monkeypatch.setattr(layer, "token_shift", plain_token_shift)
    monkeypatch.setattr(modeling, "token_shift", plain_token_shift)
    monkeypatch.setattr(layer, "fused_addcmul_rwkv7", ops["fused_addcmul"].torch_addcmul_rwkv7)
    monkeypatch.setattr(layer, "fused_k_rwkv7", ops["fused_k_update"].k_update_ref)
    monkeypatch.setattr(layer, "gate_output_correction", correction.gate_output_correction_ref)
    monkeypatch.setitem(modeling.ACT2FN, "sqrelu", lambda x: x.relu().square())


def test_names_and_shapes_are_flas(modeling: ModuleType, lm: RWKV7LM, tmp_path: Path) -> None:
    """Each tensor we write meets one of fla's of the same name and shape, and none of fla's is left over."""
    from safetensors.torch import load_file

    save_fla(lm, tmp_path)
    config = modeling.RWKV7Config.from_pretrained(tmp_path)
    theirs = {name: tuple(x.shape) for name, x in modeling.RWKV7ForCausalLM(config).state_dict().items()}
    ours = {name: tuple(x.shape) for name, x in load_file(tmp_path / "model.safetensors").items()}
    assert ours == theirs


def test_what_fla_writes_is_read(modeling: ModuleType, lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path / "ours")
    model = modeling.RWKV7ForCausalLM.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    back = load_fla(tmp_path / "theirs")
    assert all(torch.equal(back.state_dict()[name], x) for name, x in lm.state_dict().items())
    assert back.backbone.blocks[0].att.gn_eps == pytest.approx(32e-5)


@pytest.mark.usefixtures("without_kernels")
def test_same_logits_as_flas_modules(modeling: ModuleType, lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    model = modeling.RWKV7ForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(100, (2, 50))
    theirs = model(input_ids=tokens, use_cache=False).logits.detach()
    ours = lm(tokens)[0].detach()
    assert 0.5 < theirs.std() < 2
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.gpu
@torch.no_grad()
def test_same_logits_as_flas_kernels(modeling: ModuleType, lm: RWKV7LM, tmp_path: Path) -> None:
    save_fla(lm, tmp_path)
    model = modeling.RWKV7ForCausalLM.from_pretrained(tmp_path).cuda().eval()
    tokens = torch.randint(100, (2, 200))
    theirs = model(input_ids=tokens.cuda(), use_cache=False).logits.float().cpu()
    assert (lm(tokens)[0] - theirs).abs().max() < 2e-2  # Triton's float32 dot products may run in TF32
