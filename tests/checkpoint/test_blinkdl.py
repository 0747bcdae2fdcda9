"""BlinkDL's .pth: both ways, sizes from shapes, and a clear no to everything else."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.checkpoint import load_blinkdl, save_blinkdl
from core.checkpoint.blinkdl import UNUSED, from_blinkdl, to_blinkdl
from core.checkpoint.sizes import expected_shapes
from core.errors import UserError
from core.lm import RWKV7LM

MakeLM = Callable[..., RWKV7LM]
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def same(a: RWKV7LM, b: RWKV7LM) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_round_trip(random_lm: MakeLM, tmp_path: Path, num_layers: int) -> None:
    lm = random_lm(num_layers=num_layers, hidden_dim=48)
    save_blinkdl(lm, tmp_path / "deep" / "model.pth")
    back = load_blinkdl(tmp_path / "deep" / "model.pth")
    assert same(lm, back)
    assert torch.equal(lm(TOKENS)[0], back(TOKENS)[0])
    assert not back.training
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_file_has_the_official_names_and_shapes(random_lm: MakeLM, tmp_path: Path) -> None:
    """Spelt out once, by hand, from BlinkDL/RWKV-LM: C 32, N 16, ranks w 4, a 5, v 6, g 7."""
    save_blinkdl(random_lm(num_layers=2), tmp_path / "model.pth")
    shapes = {name: tuple(x.shape) for name, x in torch.load(tmp_path / "model.pth", weights_only=True).items()}
    row, square = (1, 1, 32), (32, 32)
    layer = {
        **{f"{norm}.{part}": (32,) for norm in ("ln1", "ln2", "att.ln_x") for part in ("weight", "bias")},
        **{f"att.x_{name}": row for name in "rwkvag"},
        "att.w0": row,
        "att.w1": (32, 4),
        "att.w2": (4, 32),
        "att.a0": row,
        "att.a1": (32, 5),
        "att.a2": (5, 32),
        "att.v0": row,
        "att.v1": (32, 6),
        "att.v2": (6, 32),
        "att.g1": (32, 7),
        "att.g2": (7, 32),
        "att.k_k": row,
        "att.k_a": row,
        "att.r_k": (2, 16),
        **{f"att.{name}.weight": square for name in ("receptance", "key", "value", "output")},
        "ffn.x_k": row,
        "ffn.key.weight": (128, 32),
        "ffn.value.weight": (32, 128),
    }
    expected = {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    expected |= {"emb.weight": (50, 32), "blocks.0.ln0.weight": (32,), "blocks.0.ln0.bias": (32,)}
    expected |= {"ln_out.weight": (32,), "ln_out.bias": (32,), "head.weight": (50, 32)}
    assert shapes == expected


def test_layer_0_needs_no_value_residual(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm()
    save_blinkdl(lm, tmp_path / "model.pth")
    tensors = torch.load(tmp_path / "model.pth", weights_only=True)
    for name in UNUSED:
        del tensors[name]
    torch.save(tensors, tmp_path / "without.pth")
    assert same(lm, load_blinkdl(tmp_path / "without.pth"))


def test_dtypes(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm()
    save_blinkdl(lm, tmp_path / "model.pth", dtype=torch.bfloat16)
    assert {x.dtype for x in torch.load(tmp_path / "model.pth", weights_only=True).values()} == {torch.bfloat16}
    assert load_blinkdl(tmp_path / "model.pth").emb.weight.dtype is torch.float32
    kept = load_blinkdl(tmp_path / "model.pth", dtype=None)
    assert kept.emb.weight.dtype is torch.bfloat16
    assert torch.equal(kept.emb.weight, lm.emb.weight.bfloat16())


def test_loaded_model_does_not_hang_on_the_file(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm()
    save_blinkdl(lm, tmp_path / "model.pth")
    back = load_blinkdl(tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes(b"")
    assert same(lm, back)


def test_name_maps_are_each_others_opposite(random_lm: MakeLM) -> None:
    state = random_lm().state_dict()
    tensors = to_blinkdl(state)
    back, sizes = from_blinkdl(tensors, "test")
    assert {name: id(x) for name, x in back.items()} == {name: id(x) for name, x in state.items()}
    assert list(tensors) == list(expected_shapes(sizes))


def damage(tensors: dict[str, torch.Tensor], how: str) -> None:
    if how == "missing":
        for name in [name for name in tensors if name.startswith("blocks.1.att.x_")]:
            del tensors[name]
    elif how == "left over":
        tensors["blocks.1.att.time_state"] = torch.zeros(2, 16, 16)
    elif how == "shape":
        tensors["blocks.2.att.w1"] = torch.zeros(32, 9)
    elif how == "deep embed":
        tensors["blocks.0.ffn.s_emb.weight"] = torch.zeros(50, 1024)
    elif how == "rwkv-6":
        tensors["blocks.0.att.time_maa_x"] = torch.zeros(1, 1, 32)
    elif how == "no rwkv":
        del tensors["blocks.0.att.w1"]
    elif how == "a hole":
        for name in [name for name in tensors if name.startswith("blocks.1.")]:
            if "att.v1" not in name:
                del tensors[name]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", r"missing blocks\.1\.att\.x_r, blocks\.1\.att\.x_w, blocks\.1\.att\.x_k and 3 more\.$"),
        ("left over", r"left over blocks\.1\.att\.time_state\.$"),
        ("shape", r"blocks\.2\.att\.w1 of shape \(32, 9\) where \(32, 4\) is expected"),
        ("deep embed", r"DeepEmbed"),
        ("rwkv-6", r"RWKV-5 or RWKV-6"),
        ("no rwkv", r"no tensor blocks\.0\.att\.w1"),
        ("a hole", r"missing blocks\.1\.ln1\.weight"),
    ],
)
def test_what_does_not_fit_is_named(random_lm: MakeLM, tmp_path: Path, how: str, sentence: str) -> None:
    path = tmp_path / "model.pth"
    save_blinkdl(random_lm(), path)
    tensors = torch.load(path, weights_only=True)
    damage(tensors, how)
    torch.save(tensors, path)
    with pytest.raises(UserError, match=sentence) as caught:
        load_blinkdl(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling this would leave a mark."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    mark = tmp_path / "sprung"
    monkeypatch.setenv("TRAP", str(mark))
    content = {"emb.weight": torch.zeros(2, 2), "extra": Trap()}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code"):
        load_blinkdl(tmp_path / "trap.pth")
    assert not mark.exists()


def test_old_torch_files_are_read(random_lm: MakeLM, tmp_path: Path) -> None:
    lm = random_lm()
    save_blinkdl(lm, tmp_path / "new.pth")
    tensors = torch.load(tmp_path / "new.pth", weights_only=True)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(lm, load_blinkdl(tmp_path / "old.pth"))


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps({"a": 1}, protocol=2), b"PK\x03\x04broken zip"]
)
def test_broken_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.pth") as caught:
        load_blinkdl(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none\.pth"):
        load_blinkdl(tmp_path / "none.pth")


def test_training_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"emb.weight": torch.zeros(2, 2)}, "epoch": 3}, tmp_path / "last.pth")
    with pytest.raises(UserError, match="expected a dict of tensors by name"):
        load_blinkdl(tmp_path / "last.pth")


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        ({"scan": "backward"}, "scan"),
        ({"scan": "alternate"}, "layer 1 has scan"),
        ({"token_shift": "bidirectional"}, "token_shift"),
        ({"ln_eps": 1e-6}, "ln_eps 1e-06, expected 1e-05"),
        ({"mixer": "attention", "mixer_kwargs": {}}, "Attention and MLP"),
        ({"mixer_kwargs": {"rwkv7": {"iclr_scale": 2.0}}}, r"iclr_scale 2\.0, expected 1\.0"),
        ({"mixer_kwargs": {"rwkv7": {"gn_eps": 1e-5}}}, "gn_eps"),
        ({"mixer_kwargs": {"rwkv7": {"rope_theta": 1e4}}}, "rope_theta"),
        ({"mixer_kwargs": {"rwkv7": {"gate": False}}}, "missing blocks.0.att.x_g|no tensor blocks.0.att.g1"),
        ({"mixer_kwargs": {"rwkv7": {"bias": True}}}, "left over blocks.0.att.receptance.bias"),
    ],
)
def test_other_arithmetic_is_not_written(
    random_lm: MakeLM, tmp_path: Path, backbone: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        save_blinkdl(random_lm(num_layers=2, **backbone), tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(random_lm: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")

    def full_disk(_: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_blinkdl(random_lm(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
