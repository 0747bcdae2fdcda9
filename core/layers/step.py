"""One token without gradients on a CPU, compiled: a whole stack of RWKV-7 blocks in one call.

Generation at batch 1 is bound by reading every weight once per token. PyTorch's operators spend long on their own
calls, and its matrix-vector product stays below the memory's rate; ``step.cpp`` does neither. Small models, whose
weights stay in the cache, gain at larger batches too. The layers remain the definition: the compiled step is taken only
where it gives what they would give, to float32's rounding, and nothing can tell the difference (no hooks, gradients,
autocast, tracing). Everything else goes through the layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from core.layers.block import Block
from core.layers.channel_mix import ChannelMix
from core.layers.context import Context
from core.layers.time_mix import TimeMix
from core.layers.token_shift import TokenShift
from core.state import State
from core.wkv import build, operator
from core.wkv.autograd import unwatched

_WORK_PER_THREAD = 1 << 18  # weights that pay for starting a thread
_MOST_WORK = 1 << 27  # weights times sequences, if there are several: beyond that matrix products are faster
_OWN = "x_r x_w x_k x_v x_a x_g w0 w1 w2 a0 a1 a2 v0 v1 v2 g1 g2 k_k k_a r_k"  # TimeMix's, where it has them


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Layer(ctypes.Structure):
    _fields_ = _fields(
        (ctypes.c_void_p, f"ln0_w ln0_b ln1_w ln1_b ln2_w ln2_b gamma1 gamma2 {_OWN} ln_x_w ln_x_b"),
        (ctypes.c_void_p, "receptance key value output receptance_b key_b value_b output_b ffn_x_k ffn_key ffn_value"),
        (ctypes.c_int64, "rank_w rank_a rank_v rank_g hidden"),
        (ctypes.c_double, "ln_eps gn_eps iclr_scale"),
    )


class _LayerState(ctypes.Structure):
    _fields_ = _fields(
        (ctypes.c_void_p, "att_shift wkv ffn_shift"),
        (ctypes.c_int64, "att_shift_next wkv_next ffn_shift_next"),
    )


class _Call(ctypes.Structure):
    _fields_ = _fields(
        (ctypes.c_int64, "batch layers dim heads key_dim value_dim threads"),
        (ctypes.c_void_p, "layer state x ln_out_w ln_out_b"),
        (ctypes.c_double, "ln_out_eps"),
        (ctypes.c_void_p, "y att_shift wkv ffn_shift"),
    )


class _MatrixVector(ctypes.Structure):
    _fields_ = _fields((ctypes.c_void_p, "matrix x bias y"), (ctypes.c_int64, "rows columns threads"))


@cache
def _library() -> ctypes.CDLL | None:
    return build.load(Path(__file__).with_name("step.cpp"), ("rwkv7_step", "matrix_vector")).handle


def _run(name: str, call: ctypes.Structure) -> None:
    library = _library()
    assert library is not None
    getattr(library, name)(ctypes.byref(call))


def _ordinary(x: Tensor) -> bool:
    """Whether x is plain float32 on a CPU and nobody watches what becomes of it."""
    return (
        unwatched(x)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()
        and operator.requested() in (None, "native")
        and _library() is not None
    )


def _threads(weights: int) -> int:
    return max(1, min(torch.get_num_threads(), weights // _WORK_PER_THREAD))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for x (..., in_features); a single row goes at the memory's rate, where a step would."""
    if (
        x.shape[-1] != x.numel()
        or x.numel() != layer.in_features
        or not _ordinary(x)
        or type(layer) is not nn.Linear
        or _hooked(layer)
    ):
        return layer(x)
    weight, bias = layer.weight, layer.bias
    if not all(_readable(p) for p in (weight, bias) if p is not None):
        return layer(x)
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], layer.out_features)
    call = _MatrixVector(
        weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(),
        layer.out_features, layer.in_features, _threads(weight.numel()),
    )  # fmt: skip
    _run("matrix_vector", call)
    return y


def step(
    blocks: nn.ModuleList, ln_out: nn.Module, x: Tensor, state: State | None, ctx: Context
) -> tuple[Tensor, State] | None:
    """One token through `blocks` and `ln_out`, or None where the layers themselves must do it.

    Args:
        blocks: of a :class:`core.backbone.Backbone`, and its last norm.
        x: (B, 1, C), embedded.
        state: as the backbone takes it.
        ctx: as the backbone takes it; nothing in it may need a layer's attention.

    Returns:
        (y (B, 1, C), the state after it), or None.
    """
    if not len(x) or ctx[:2] != (None, None) or ctx.v_first is not None or not ctx.keep_state or not _ordinary(x):
        return None
    plan = _plans.get(blocks)
    if plan is None or plan.ln_out is not ln_out or len(plan.layers) != len(blocks) or not plan.seen.still():
        _plans.pop(blocks, None)
        plan = _plan(blocks, ln_out)
        if plan is None:
            return None
        _plans[blocks] = plan
    return plan.run(x.contiguous(), state)


# ------------------------------------------------------------------------------------------------------ the plan


def _readable(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


class _Seen:
    """What a plan relies on: modules, parameters and settings, by identity, and the parameters' addresses."""

    def __init__(self, modules: Sequence[nn.Module], tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.hooks = [hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        self.places = [(part, name) for m in modules for part in (m._modules, m._parameters) for name in part]
        # A hook that is a module of its own lies among the modules.
        self.places += [(p, name) for m in modules for name in _SETTINGS[type(m)] for p in (m.__dict__, m._modules)]
        self.values, self.addresses = self._values(), self._addresses()

    def _values(self) -> list[object]:
        return [part.get(name) for part, name in self.places]

    def _addresses(self) -> list[int]:
        return [x.data_ptr() for x in self.tensors]

    def still(self) -> bool:
        """Whether all of it is still there, and where it was."""
        same = all(map(is_, self._values(), self.values)) and self._addresses() == self.addresses
        return same and not any(self.hooks)


# Modules that a plan may consist of, and which of their plain attributes it depends on.
_SETTINGS: dict[type, tuple[str, ...]] = {
    nn.ModuleList: (), TokenShift: ("kind",), nn.Linear: (), nn.Identity: (), DropPath: ("training",),
    nn.LayerNorm: ("eps",), nn.GroupNorm: ("eps", "num_groups"), Block: ("post_norm",), ChannelMix: (),
    TimeMix: ("wkv_edit", "readout", "rope_theta", "repeats", "scan", "iclr_scale", "heads"),
}  # fmt: skip


class _Plan(NamedTuple):
    """The constant part of a call, and what it stands on."""

    call: _Call
    layers: Any  # a C array of _Layer
    shape: tuple[int, int, int]  # of a layer's wkv state: H, V, K
    ln_out: nn.Module
    seen: _Seen

    def run(self, x: Tensor, state: State | None) -> tuple[Tensor, State] | None:
        """None if the state is not as the step reads it, or layers would be faster."""
        count, batch, dim = len(self.layers), len(x), x.shape[-1]
        weights = batch * self.call.threads
        if batch > 1 and weights * count > _MOST_WORK:
            return None
        incoming = (_LayerState * count)()
        kept = [] if state is None else self._point(incoming, state, batch, dim)  # copies must outlive the call
        if kept is None:
            return None
        y = torch.empty_like(x)
        shift, ffn_shift, wkv = (x.new_empty(count, batch, *size) for size in ((dim,), (dim,), self.shape))
        call = _Call.from_buffer_copy(self.call)
        call.batch, call.threads = batch, _threads(weights)
        call.layer, call.state = ctypes.addressof(self.layers), ctypes.addressof(incoming)
        call.x, call.y = x.data_ptr(), y.data_ptr()
        call.att_shift, call.wkv, call.ffn_shift = shift.data_ptr(), wkv.data_ptr(), ffn_shift.data_ptr()
        _run("rwkv7_step", call)
        after = zip(shift.unbind(), wkv.unbind(), ffn_shift.unbind(), strict=True)
        return y, State(tuple({"att": {"shift": a, "wkv": s}, "ffn": {"shift": f}} for a, s, f in after))

    def _point(self, incoming: Any, state: State, batch: int, dim: int) -> list[Tensor] | None:
        """Point `incoming` at the state's tensors; returns them, None if one of them does not fit."""
        if len(state.layers) != len(incoming):
            return None
        kept: list[Tensor] = []
        for entry, layer in zip(incoming, state.layers, strict=True):
            for part, name, field, size in (
                ("att", "shift", "att_shift", (dim,)), ("att", "wkv", "wkv", self.shape),
                ("ffn", "shift", "ffn_shift", (dim,)),
            ):  # fmt: skip
                tensor = layer.get(part, {}).get(name)
                if tensor is None:
                    continue
                tensor = tensor.contiguous()
                if not _readable(tensor) or tuple(tensor.shape) not in (size, (batch, *size)):
                    return None
                setattr(entry, field, tensor.data_ptr())
                setattr(entry, f"{field}_next", tensor.numel() // batch if tensor.ndim > len(size) else 0)
                kept.append(tensor)
        return kept


_plans: WeakKeyDictionary[nn.ModuleList, _Plan] = WeakKeyDictionary()


def _plan(blocks: nn.ModuleList, ln_out: nn.Module) -> _Plan | None:
    """How to step through these blocks; None if one of them is not plain RWKV-7 in float32."""
    modules = [*blocks.modules(), ln_out]
    if any(type(m) not in _SETTINGS or "forward" in m.__dict__ or _hooked(m) for m in modules):
        return None
    tensors = [p for m in modules for p in m._parameters.values() if p is not None]
    if not all(map(_readable, tensors)) or not all(map(_plain, modules)):
        return None
    entries = [_entry(block) for block in blocks if isinstance(block, Block)]
    found = {entry.sizes for entry in entries if entry}
    if len(found) != 1 or None in entries:
        return None
    dim, heads, key_dim, value_dim, _ = found.pop()
    call = _Call(
        layers=len(entries), dim=dim, heads=heads, key_dim=key_dim, value_dim=value_dim,
        threads=sum(x.numel() for x in tensors) // len(entries),
    )  # fmt: skip
    if isinstance(ln_out, nn.LayerNorm):
        call.ln_out_w, call.ln_out_b = ln_out.weight.data_ptr(), ln_out.bias.data_ptr()
        call.ln_out_eps = ln_out.eps
    layers = (_Layer * len(entries))(*(entry.layer for entry in entries if entry))
    return _Plan(call, layers, (heads, value_dim, key_dim), ln_out, _Seen(modules, tensors))


def _plain(module: nn.Module) -> bool:
    """Whether the step does what this module's settings ask for."""
    if isinstance(module, TimeMix):
        free = module.wkv_edit is None and module.readout is None and module.rope_theta is None
        return free and module.repeats == 1 and module.scan.orders == ("forward",)
    if isinstance(module, TokenShift):
        return module.kind == "causal"
    if isinstance(module, Block):
        return not module.post_norm
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return module.weight is not None and module.bias is not None
    return not (isinstance(module, DropPath) and module.training)


class _Entry(NamedTuple):
    sizes: tuple[int, int, int, int, int]  # C, H, K, V, hidden
    layer: _Layer


def _entry(block: Block) -> _Entry | None:
    """The addresses of one block; None if it holds other mixers, or tensors of other sizes than their modules say."""
    att, ffn = block.att, block.ffn
    if not isinstance(att, TimeMix) or not isinstance(ffn, ChannelMix):
        return None
    found: dict[str, Tensor | None] = {"gamma1": block.gamma1, "gamma2": block.gamma2, "ffn_x_k": ffn.x_k}
    found |= {name: att._parameters.get(name) for name in _OWN.split()}
    for name, norm in (("ln0", block.ln0), ("ln1", block.ln1), ("ln2", block.ln2), ("ln_x", att.ln_x)):
        found |= (
            {f"{name}_w": None, f"{name}_b": None}
            if norm is None
            else {f"{name}_w": norm.weight, f"{name}_b": norm.bias}
        )
    for name in ("receptance", "key", "value", "output"):
        found |= {name: getattr(att, name).weight, f"{name}_b": getattr(att, name).bias}
    found |= {"ffn_key": ffn.key.weight, "ffn_value": ffn.value.weight}

    ranks = {x: 0 if (down := found[f"{x}1"]) is None else down.shape[1] for x in "wavg"}
    dim, heads, values, hidden = att.output.out_features, att.heads, att.output.in_features, ffn.key.out_features
    sizes = dict.fromkeys(found, dim) | {"v0": values, "ln_x_w": values, "ln_x_b": values, "value_b": values}
    sizes |= {f"{x}1": dim * rank for x, rank in ranks.items()}
    sizes |= {f"{x}2": rank * (dim if x in "wa" else values) for x, rank in ranks.items()}
    sizes |= {"receptance": dim * dim, "key": dim * dim, "value": values * dim, "output": dim * values}
    sizes |= {"ffn_key": hidden * dim, "ffn_value": dim * hidden}
    eps = {norm.eps for norm in (block.ln0, block.ln1, block.ln2) if norm is not None}
    fits = all(x is None or x.numel() == sizes[name] for name, x in found.items()) and len(eps) == 1
    if not fits or (att.ln_x is not None and att.ln_x.num_groups != heads):
        return None
    layer = _Layer(
        **{name: None if x is None else x.data_ptr() for name, x in found.items()},
        **{f"rank_{x}": rank for x, rank in ranks.items()}, hidden=hidden,
        ln_eps=eps.pop(), gn_eps=0.0 if att.ln_x is None else att.ln_x.eps, iclr_scale=att.iclr_scale,
    )  # fmt: skip
    return _Entry((dim, heads, dim // heads, values // heads, hidden), layer)
