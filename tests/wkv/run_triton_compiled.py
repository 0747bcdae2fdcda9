"""Compile the Triton kernels for a GPU that is not there, in a process of its own; prints what each kernel takes.

    python run_triton_compiled.py 90 bfloat16 64 64

Arguments: compute capability, dtype, key and value dimension. The calls are the real ones, on tensors without memory;
only the launch is left out. Prints JSON: a list of {"kernel", "registers", "stack", "shared"}, in bytes.
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from core.wkv import triton as backend


class Absent:
    """The driver of a GPU of this compute capability."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def takes(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", text)[1]) for what in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "shared": kernel.metadata.shared}


def main(capability, dtype, dim_k, dim_v):
    driver.set_active(Absent(int(capability)))
    found, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append({"kernel": self.fn.__name__, **takes(kernel)})

    JITFunction.run = compile_only
    batch, steps, heads = 8, 4096, 32
    kind = getattr(torch, dtype)
    with torch.device("meta"):
        keys, values = (torch.empty(batch, steps, heads, int(dim), dtype=kind) for dim in (dim_k, dim_v))
        inputs = (keys, keys.float(), keys, values, keys, keys)
        state, reset = torch.empty(batch, heads, int(dim_v), int(dim_k)), torch.empty(batch, steps, dtype=torch.bool)
        *_, inverse, states = backend._forward(*inputs, state, reset, True, True, heads, heads // 2)
        backend._backward(values, state, *inputs, reset, inverse, states, heads, heads // 2)
    json.dump(found, sys.stdout)


main(*sys.argv[1:])
