"""Cards on TAP devices, each check in a network namespace of its own (tap_checks.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = [
    "plain",
    "checksums",
    "large_from_guest",
    "large_to_guest",
    "datagrams_from_guest",
    "pairs",
    "bridge",
    "refusals",
]


def namespace() -> list[str]:
    """The command that has what follows run in a network of its own; skips where that can't be."""
    own = ["unshare", "--net", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--net", "--mount"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("unshare or ip is not installed (util-linux, iproute2)")
    if subprocess.run([*own, "test", "-w", "/dev/net/tun"], capture_output=True).returncode:
        pytest.skip("no network namespaces, or no /dev/net/tun, for this user")
    return own


@pytest.mark.parametrize("check", CHECKS)
def test_a_card_on_a_tap_device(check: str) -> None:
    script = str(Path(__file__).parent / "tap_checks.py")
    done = subprocess.run([*namespace(), sys.executable, script, check], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr
