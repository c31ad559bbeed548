"""`kvmkit run --accel kvm` of an unmodified Linux, as a user types it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from kvmkit.guest import images

from .linux import kvmkit

ON_KVM = ("run", "--accel", "kvm")
MUCH = 50_000  # bytes; each costs exits, and exits are slow here


def test_output_input_and_exit_status_are_the_commands() -> None:
    script = 'read word; echo "$word on $(uname -r)"; cat; echo complaint >&2; exit 7'
    ran = kvmkit(*ON_KVM, "--", "sh", "-c", script, data=b"hello\n" + bytes(range(256)))
    expected = f"hello on {images.ensure().release}\n".encode() + bytes(range(256))
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, expected, b"complaint\n")


def test_much_output_comes_out_whole() -> None:
    ran = kvmkit(*ON_KVM, "--", "sh", "-c", f"seq 1 200000 | head -c {MUCH}", timeout=110)
    expected = b"".join(b"%d\n" % i for i in range(1, 200001))[:MUCH]
    assert ran.returncode == 0
    assert hashlib.sha256(ran.stdout).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_auto_takes_kvm_here(tmp_path: Path) -> None:
    """And --stats says so, and what the guest did."""
    stats = tmp_path / "stats.json"
    ran = kvmkit("run", "--stats", str(stats), "--", "true")
    assert (ran.returncode, ran.stderr) == (0, b"")
    report = json.loads(stats.read_text())
    assert report["accel"] == "kvm"
    assert 0 < report["first_instruction_ms"] < report["kernel_first_line_ms"] < report["user_space_ms"]
    assert report["user_space_ms"] < report["command_end_ms"]
    assert report["exits"]["port"] > 100
