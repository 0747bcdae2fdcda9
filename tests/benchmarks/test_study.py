"""What studies share: processes that end with their parent, and widths that give equal parameters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.study import matching_width

# Trainings that never end. The processes that do them import this file anew.
STUDY = """
import sys, time
from pathlib import Path
from typing import NamedTuple

from benchmarks.study import Lines, run

FOLDER = Path(sys.argv[1])

class Key(NamedTuple):
    number: int

class Setting(NamedTuple):
    steps: int = 1

    def plain(self):
        return self._asdict()

def one(setting, key):
    (FOLDER / f"begun-{key.number}").touch()
    time.sleep(1000)

if __name__ == "__main__":
    run([Key(0), Key(1)], Lines(FOLDER / "study", Setting(), Key, dict), 2, one)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_study_leaves_nobody_running(tmp_path, repository):
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    environment = {**os.environ, "GREYLAG_TEST_MARK": str(tmp_path), "PYTHONPATH": str(repository)}
    study = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert _within(60, lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        assert len(_marked(str(tmp_path))) >= 3
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    assert _within(60, lambda: not _marked(str(tmp_path)))


def _within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _marked(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"GREYLAG_TEST_MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("wanted", "width"), [(1000, 40), (1049, 40), (1051, 44), (800, 32), (1399, 56)])
def test_the_width_nearest_to_the_wanted_parameters(wanted, width):
    assert matching_width(lambda width: 25 * width, wanted, start=48) == width
