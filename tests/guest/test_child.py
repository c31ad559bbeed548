"""What programs that we end have started."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from kvmkit.guest.child import end_group

WRITES = "while :; do echo >$1/$(date +%N); done"


def test_nothing_is_written_once_a_group_has_ended(tmp_path: Path) -> None:
    """Neither by the program itself, nor by one that it started and that it does not wait for."""
    script = f"(trap '' TERM; {WRITES}) & exec sh -c '{WRITES}' sh $1"
    process = subprocess.Popen(["sh", "-c", script, "sh", str(tmp_path)], start_new_session=True)
    end = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 20:
        assert time.monotonic() < end
        time.sleep(0.01)
    end_group(process)
    before = sorted(tmp_path.iterdir())
    time.sleep(0.3)
    assert sorted(tmp_path.iterdir()) == before


def test_one_that_has_ended_leaves_nothing_either(tmp_path: Path) -> None:
    process = subprocess.Popen(["sh", "-c", f"({WRITES}) & exit 3", "sh", str(tmp_path)], start_new_session=True)
    assert process.wait() == 3
    end_group(process)
    before = sorted(tmp_path.iterdir())
    time.sleep(0.3)
    assert sorted(tmp_path.iterdir()) == before
    assert process.returncode == 3
