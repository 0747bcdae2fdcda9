"""How much memory something needed: this process's own figures, as Linux counts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def growth(call: Callable[[], object]) -> int:
    """Bytes by which this process, which should be fresh, grew at most during the call."""
    with suppress(OSError):  # from here on the peak is counted anew, where Linux lets one
        Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def growth_apart(call: Callable[[], object], smaller: Callable[[], object]) -> int:
    """The same in a copy of this process, so that what one call leaves behind does not serve the next.

    For processes with a single thread. `smaller` is called first: a copy maps the libraries anew as it uses them.

    Raises:
        RuntimeError: the copy came to grief.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            smaller()
            os.write(writing, str(growth(call)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        raise RuntimeError("the process whose memory was to be measured ended early")
    return int(told)


def resident(field: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most. Elsewhere than on Linux the most, for both."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    # Not ru_maxrss: a process inherits that of the one that started it.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
