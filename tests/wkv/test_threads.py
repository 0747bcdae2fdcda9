"""The native kernel's threads: PyTorch's own where they are alive, and the same numbers in a forked child."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.wkv import available_backends

FORKED = """
import os, torch
from core.wkv import wkv7

torch.set_num_threads(2)
torch.manual_seed(0)
r, k, v, a = (torch.randn(1, 600, 4, 64) for _ in range(4))
a = torch.nn.functional.normalize(a, dim=-1)
b = -0.5 * a
log_w = torch.full_like(r, -0.5)
call = lambda: wkv7(r, log_w, k, v, a, b, backend="native")[0]
wanted = call().numpy().tobytes()  # PyTorch's threads are up now, and die with the fork
child = os.fork()
if child == 0:
    os._exit(0 if call().numpy().tobytes() == wanted else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_computes_the_same_and_does_not_hang() -> None:
    if reason := available_backends()["native"]:
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr
