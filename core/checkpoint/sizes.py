"""What an RWKV-7 language model's tensors are called and how large they are.

BlinkDL's ``.pth`` names are the pivot: every other format is a map to them and from them. All sizes are read from
the tensors, since released checkpoints follow no formula (the low-rank dimensions above all).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from core.errors import UserError
from core.init import LoRARanks

Spell = Callable[[str], str]
"""BlinkDL's name of a tensor to the name its file has, for errors."""

MIXES = ("r", "w", "k", "v", "a", "g")
PROJECTIONS = ("receptance", "key", "value", "output")

# A tensor that only this other architecture has, and what to say.
_STRANGERS = (
    (r"ffn\.(s_emb|s_emb_x)\.weight$|ffn\.s[012]$", "RWKV-7 with DeepEmbed (v7a, v7b), which Greylag does not run"),
    (r"att\.(time_maa|time_faaaa|time_mix_g)", "an RWKV-5 or RWKV-6 file; Greylag runs RWKV-7"),
    (r"att\.time_(decay|first|mix)", "an RWKV-4 file; Greylag runs RWKV-7"),
    (r"\.qkv\.|rosa", "an RWKV-8 file; Greylag runs RWKV-7"),
)


@dataclass(frozen=True)
class Sizes:
    """Every size that decides a tensor's shape in an RWKV-7 language model."""

    vocab_size: int
    dim: int
    num_layers: int
    head_dim: int
    hidden_dim: int
    ranks: LoRARanks

    @property
    def num_heads(self) -> int:
        return self.dim // self.head_dim


def read_sizes(tensors: Mapping[str, Tensor], source: str, spell: Spell = str) -> Sizes:
    """Sizes of a model from its tensors under BlinkDL's names.

    Args:
        tensors: by BlinkDL's names.
        source: what to call the file in an error.
        spell: what to call its tensors.

    Raises:
        UserError: another architecture, or a tensor that states a size is missing.
    """
    for pattern, verdict in _STRANGERS:
        if any(re.search(pattern, name) for name in tensors):
            raise UserError(f"{source} is {verdict}.")

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{source} is no RWKV-7 language model: it has no tensor {spell(name)}.")
        if tensors[name].ndim != ndim:
            found = tuple(tensors[name].shape)
            raise UserError(
                f"{source} does not fit RWKV-7: {spell(name)} has shape {found}, expected {ndim} dimensions."
            )
        return tuple(tensors[name].shape)

    vocab_size, dim = shape("emb.weight", 2)
    layers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    rank = {name: shape(f"blocks.0.att.{name}1", 2)[1] for name in "wag"}
    # The first layer has no value residual; a single-layer model says nothing about its rank.
    rank["v"] = shape("blocks.1.att.v1", 2)[1] if len(layers) > 1 else LoRARanks.of(dim).v
    return Sizes(
        vocab_size=vocab_size,
        dim=dim,
        num_layers=max(layers) + 1,
        head_dim=shape("blocks.0.att.r_k", 2)[1],
        hidden_dim=shape("blocks.0.ffn.key.weight", 2)[0],
        ranks=LoRARanks(**rank),
    )


def expected_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the order of a ``.pth``, without layer 0's unused v0, v1, v2."""
    vector = (sizes.dim,)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (sizes.vocab_size, sizes.dim)}
    for layer in range(sizes.num_layers):
        norms = ("ln0", "ln1", "ln2") if layer == 0 else ("ln1", "ln2")
        shapes |= {f"blocks.{layer}.{norm}.{part}": vector for norm in norms for part in ("weight", "bias")}
        shapes |= {f"blocks.{layer}.att.{name}": shape for name, shape in _time_mix_shapes(sizes, layer)}
        shapes |= {
            f"blocks.{layer}.ffn.x_k": (1, 1, sizes.dim),
            f"blocks.{layer}.ffn.key.weight": (sizes.hidden_dim, sizes.dim),
            f"blocks.{layer}.ffn.value.weight": (sizes.dim, sizes.hidden_dim),
        }
    return shapes | {
        "ln_out.weight": vector,
        "ln_out.bias": vector,
        "head.weight": (sizes.vocab_size, sizes.dim),
    }


def _time_mix_shapes(sizes: Sizes, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, row = sizes.dim, (1, 1, sizes.dim)
    yield from ((f"x_{name}", row) for name in MIXES)
    for name in ("w", "a", "v", "g"):
        if name == "v" and layer == 0:
            continue
        rank = getattr(sizes.ranks, name)
        if name != "g":
            yield f"{name}0", row
        yield f"{name}1", (dim, rank)
        yield f"{name}2", (rank, dim)
    yield from (("k_k", row), ("k_a", row), ("r_k", (sizes.num_heads, sizes.head_dim)))
    yield from ((f"{name}.weight", (dim, dim)) for name in PROJECTIONS)
    yield from (("ln_x.weight", (dim,)), ("ln_x.bias", (dim,)))


def check_fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    spell: Spell = str,
    what: str = "RWKV-7",
) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Raises:
        UserError: one sentence that names what is missing, what is left over and what has another shape.
    """
    complaints = []
    if missing := [spell(name) for name in expected if name not in tensors]:
        complaints.append(f"missing {_some(missing)}")
    if extra := [spell(name) for name in tensors if name not in expected]:
        complaints.append(f"left over {_some(extra)}")
    wrong = [
        f"{spell(name)} of shape {tuple(tensors[name].shape)} where {shape} is expected"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        complaints.append(_some(wrong))
    if complaints:
        raise UserError(f"{source} does not fit {what}: {'; '.join(complaints)}.")


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
