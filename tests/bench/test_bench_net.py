"""The network benchmark: its driver does what it says, on the software CPU too, and the report adds up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.bench.short import short_run

from kvmkit.bench import net_kernel
from kvmkit.bench.net import Peer, Point
from kvmkit.bus import pc

FRAMES = 500


def run(tmp_path: Path, way: net_kernel.Way, size: int, accel: str, sent_size: int = 0) -> tuple[int, int]:
    """The driver's run: exit status, and the bytes that its peer got."""
    kernel, sock = tmp_path / "kernel.elf", tmp_path / "peer.sock"
    kernel.write_bytes(net_kernel.build(pc.VIRTIO_MMIO, way, size, FRAMES))
    peer = Peer(str(sock), Point("one", way, sent_size or size))
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", accel, "--memory", "32M", "--kernel", str(kernel)]
    command += ["--debug-exit", "--net", f"socket={sock}", "--timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    peer.close()
    if "/dev/kvm" in done.stderr and "warning:" not in done.stderr:
        pytest.skip(done.stderr)
    return done.returncode, peer.received


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
@pytest.mark.parametrize("size", [60, 32768])
def test_it_sends(tmp_path: Path, size: int, accel: str) -> None:
    assert run(tmp_path, "send", size, accel) == (1, FRAMES * (4 + size))


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
@pytest.mark.parametrize("size", [60, 32768])
def test_it_receives(tmp_path: Path, size: int, accel: str) -> None:
    assert run(tmp_path, "receive", size, accel) == (1, 0)


def test_a_frame_of_another_length_ends_it(tmp_path: Path) -> None:
    assert run(tmp_path, "receive", 1000, "tcg", 999) == (15, 0)


def test_frames_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="frames"):
        net_kernel.build(pc.VIRTIO_MMIO, "send", 13, 1000)


@pytest.mark.kvm
def test_a_short_run_beside_qemu() -> None:
    short_run("net")
