"""Questions to the machine that torch does not answer. Each returns, whatever is missing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """The processor as its maker calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return (_output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "unknown").strip()


def cores_allowed() -> int:
    """What the scheduler lets this process use, a container's quota (cgroup v2) included."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


def driver_version() -> str | None:
    """NVIDIA's driver, if there is one that answers."""
    said = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said and said.strip() else None


def compiler_version(compiler: str) -> str:
    """The first line of what the compiler says of itself."""
    return ((_output(compiler, "--version") or "").splitlines() or ["version unknown"])[0]


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
