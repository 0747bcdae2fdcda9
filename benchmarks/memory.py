"""How much memory something needed: this process's own figures, as Linux counts them."""

from __future__ import annotations

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
