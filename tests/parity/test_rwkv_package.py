"""Our language model against BlinkDL's `rwkv` package (PyPI): the same .pth gives the same logits and states."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from core.checkpoint import load_blinkdl, save_blinkdl
from core.lm import RWKV7LM

TOLERANCE = 1e-5  # of logits with a standard deviation of one
VOCABULARY = 200
SHAPES = [(128, 2, 64), (192, 3, 32), (768, 2, 64), (64, 1, 64)]  # width, layers, head size

pytestmark = pytest.mark.skipif(importlib.util.find_spec("rwkv") is None, reason="the rwkv package is not installed")


class Case(NamedTuple):
    """A model, the tokens, and what the package made of them."""

    lm: RWKV7LM
    tokens: Tensor
    theirs: dict[str, Any]


@pytest.fixture(scope="module")
def results(hard_lm: Callable[..., RWKV7LM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, the tokens, and the package's results, all made by one process."""
    folder = tmp_path_factory.mktemp("rwkv")
    for dim, num_layers, head_dim in SHAPES:
        save_blinkdl(hard_lm(VOCABULARY, dim, num_layers, head_dim), folder / f"{dim}-{num_layers}-{head_dim}.pth")
    tokens = torch.randint(VOCABULARY, (100,), generator=torch.Generator().manual_seed(3))
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
    command = [sys.executable, str(Path(__file__).with_name("run_rwkv.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=SHAPES, ids=lambda shape: "C{}-L{}-N{}".format(*shape))
def case(request: pytest.FixtureRequest, results: Path) -> Case:
    path = results / "{}-{}-{}.pth".format(*request.param)
    tokens = torch.tensor(json.loads((results / "tokens.json").read_text()))
    return Case(load_blinkdl(path), tokens[None], torch.load(path.with_suffix(".result"), weights_only=True))


@torch.no_grad()
def in_pieces(lm: RWKV7LM, tokens: Tensor, size: int) -> Tensor:
    logits, state = [], None
    for piece in tokens.split(size, dim=1):
        y, state = lm(piece, state)
        logits.append(y[0])
    return torch.cat(logits)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert 0.5 < theirs.std() < 2
    assert (ours - theirs).abs().max() < TOLERANCE


def test_whole_sequence(case: Case) -> None:
    assert_same(in_pieces(case.lm, case.tokens, 100), case.theirs["sequence"])


def test_token_by_token(case: Case) -> None:
    assert_same(in_pieces(case.lm, case.tokens, 1), case.theirs["single"])


def test_pieces_with_carried_state(case: Case) -> None:
    assert_same(in_pieces(case.lm, case.tokens, 7), case.theirs["pieces"])


@torch.no_grad()
def test_states(case: Case) -> None:
    """Theirs: a flat list, per layer the last token before time mix, wkv (H, N, N) rows = value, before channel mix."""
    _, state = case.lm(case.tokens)
    for i, layer in enumerate(state.layers):
        shift, wkv, ffn_shift = case.theirs["state"][3 * i : 3 * i + 3]
        assert (layer["att"]["shift"][0] - shift).abs().max() < 1e-5 * shift.abs().max()
        assert (layer["att"]["wkv"][0] - wkv).abs().max() < 1e-5 * wkv.abs().max()
        assert (layer["ffn"]["shift"][0] - ffn_shift).abs().max() < 1e-5 * ffn_shift.abs().max()


@torch.no_grad()
def test_a_wrong_model_is_noticed(case: Case) -> None:
    """The tolerance is no open door: swapping two vectors of one layer moves the logits a thousandfold more."""
    wrong = RWKV7LM(**case.lm.config).eval()
    wrong.load_state_dict(case.lm.state_dict())
    att = wrong.backbone.blocks[-1].att
    att.x_k, att.x_v = att.x_v, att.x_k
    assert (in_pieces(wrong, case.tokens, 100) - case.theirs["sequence"]).abs().max() > 1e3 * TOLERANCE
