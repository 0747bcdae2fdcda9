"""``greylag export``: a model for others, as weights or as a graph."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.pipeline import Pipeline

HELP = """
usage: greylag export run=FOLDER to=FOLDER [format=safetensors]
       greylag export model=FOLDER_OR_HUB_ID to=FOLDER ...

  format=safetensors     model.safetensors, config.json, model card: what from_pretrained and the Hub take
  format=torch_export    also model.pt2, a graph; of plain PyTorch operators for short inputs
  format=onnx            also model.onnx (needs: pip install onnx onnxscript onnxruntime)
  force=true             write into a folder that is not empty
  tolerance=1e-4         how far the graph's outputs may be from the model's

A graph is checked against the model before it is kept.
"""

PLAIN_STEPS = 256  # layers x steps of recurrence that are written out; a node of the graph each, times fifty
FORMATS = ("safetensors", "torch_export", "onnx")


class Exported(NamedTuple):
    """A graph's file, the greatest difference of its outputs from the model's, and what to know about it."""

    file: Path
    difference: float
    note: str


def run(arguments: list[str]) -> int:
    """Export; returns the exit status."""
    from core.cli.compose import parse
    from core.cli.models import load_pipeline
    from core.cli.saved import take
    from core.cli.terminal import console

    overrides = parse(arguments)
    to, overrides = take(overrides, "to")
    kind, overrides = take(overrides, "format", "safetensors")
    force, overrides = take(overrides, "force", False)
    tolerance, overrides = take(overrides, "tolerance", 1e-4)
    if to is None:
        raise UserError("Say where to: to=FOLDER")
    if kind not in FORMATS:
        raise UserError(f"format={kind}: expected one of {', '.join(FORMATS)}.")
    if kind == "onnx":
        _require_onnx()
    target = Path(str(to)).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise UserError(f"to={to} is not an empty folder; choose another, or force=true to write into it.")
    pipeline, source, rest = load_pipeline(overrides, "export")
    if rest:
        raise UserError(f"There is no option '{rest[0].key_or_group}'; see greylag export --help.")
    target.mkdir(parents=True, exist_ok=True)
    out = console()
    _write_weights(pipeline, source, target)
    if kind != "safetensors":
        writer = write_torch_export if kind == "torch_export" else write_onnx
        done = writer(pipeline, target, float(tolerance))
        out.print(f"{done.file}: differs by {done.difference:.1e} at most from the model; {done.note}", highlight=False)
    for file in sorted(path for path in target.iterdir() if path.is_file()):
        out.print(f"{file}  [dim]{file.stat().st_size:,} bytes[/]", highlight=False)
    return 0


def _write_weights(pipeline: Pipeline, source: Path | None, target: Path) -> None:
    """The model folder as it is, card included; from the pipeline where the source is elsewhere."""
    from core.pipeline import CARD, CONFIG, WEIGHTS

    if source is None or not all((source / name).is_file() for name in (WEIGHTS, CONFIG, CARD)):
        pipeline.save_pretrained(target)
        return
    for name in (WEIGHTS, CONFIG, CARD):
        shutil.copyfile(source / name, target / name)


def write_torch_export(pipeline: Pipeline, target: Path, tolerance: float) -> Exported:
    """model.pt2 for any batch size.

    Raises:
        UserError: the model cannot be exported, or the graph's outputs are not the model's.
    """
    import torch

    model, inputs = pipeline.graph().cpu().eval(), _example(pipeline)
    file = target / "model.pt2"
    program, plain = exported(model, inputs)
    torch.export.save(program, file)
    graph = torch.export.load(file).module()
    note = "plain PyTorch operators" if plain else "holds greylag's own operator: import core.wkv before loading it"
    return Exported(file, _compare(model, graph, inputs, tolerance, file), note)


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, bool]:
    """The model as a torch.export program whose first dimension is free, and whether it is of plain operators.

    Plain operators need the WKV recurrence written out step by step (the reference backend). That is done where
    layers x steps are few; beyond, graphs of hundreds of thousands of nodes would result, and the chunked
    backend's operator stays in the graph.
    """
    import torch

    from core.wkv import use_backend

    def trace(backend: str) -> Any:
        with torch.no_grad(), use_backend(backend):
            shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
            return torch.export.export(model, inputs, dynamic_shapes=shapes).run_decompositions()

    try:
        program = trace("chunked")
        steps = [
            node.meta["val"][0].shape[1] for node in program.graph.nodes if str(node.target).startswith("greylag.wkv7")
        ]
        if not steps or sum(steps) > PLAIN_STEPS:
            return program, not steps
        return trace("reference"), True
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"This model cannot be exported as a graph: {first}") from error


def write_onnx(pipeline: Pipeline, target: Path, tolerance: float) -> Exported:
    """model.onnx by way of torch.export, checked with onnxruntime.

    Raises:
        UserError: as for torch_export, and where the graph would hold operators that ONNX does not know.
    """
    import onnxruntime
    import torch

    model, inputs = pipeline.graph().cpu().eval(), _example(pipeline)
    file = target / "model.onnx"
    exported_program, plain = exported(model, inputs)
    if not plain:
        raise UserError(
            f"This model takes more than {PLAIN_STEPS} recurrent steps per input, which ONNX cannot hold; "
            "format=torch_export works."
        )
    program = torch.onnx.export(exported_program, dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def graph(*tensors: Tensor) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return Exported(file, _compare(model, graph, inputs, tolerance, file), "ONNX")


def _example(pipeline: Pipeline) -> tuple[Tensor, ...]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for tensor in pipeline.example_inputs()
    )


def _compare(model: nn.Module, graph: Any, inputs: tuple[Tensor, ...], tolerance: float, file: Path) -> float:
    """The greatest difference of outputs, on the example and on a batch of three; raises beyond the tolerance."""
    import torch

    greatest = 0.0
    for batch in (inputs, tuple(torch.cat((tensor, tensor[:1].flip(-1))) for tensor in inputs)):
        with torch.no_grad():
            expected, found = model(*batch), graph(*batch)
        greatest = max(greatest, float((expected - found).abs().max()))
    if not greatest <= tolerance:
        file.unlink(missing_ok=True)
        raise UserError(
            f"The exported graph's outputs differ by {greatest:.2e} from the model's, more than "
            f"tolerance={tolerance:g}; it was not kept."
        )
    return greatest


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
