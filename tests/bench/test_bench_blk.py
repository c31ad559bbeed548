"""The disk benchmark: its driver does what it says, on the software CPU too, and the report adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.bench.short import short_run

from kvmkit.bench import blk, blk_fio, blk_kernel, qemu
from kvmkit.bus import pc
from kvmkit.errors import HostError
from kvmkit.guest import images

DISK = 1 << 20


def run(tmp_path: Path, way: blk_kernel.Way, depth: int) -> tuple[int, bytes, bytes]:
    """The driver's run of 100 requests: exit status, the disk before it and after it."""
    kernel, path = tmp_path / "kernel.elf", tmp_path / "disk.raw"
    kernel.write_bytes(blk_kernel.build(pc.VIRTIO_MMIO, way, 4096, depth, 100, DISK, sequential=True))
    before = os.urandom(DISK)
    path.write_bytes(before)
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--memory", "16M", "--kernel", str(kernel)]
    command += ["--debug-exit", "--disk", str(path), "--timeout", "60"]
    done = subprocess.run(command, capture_output=True)
    return done.returncode, before, path.read_bytes()


@pytest.mark.parametrize("depth", [1, 32])
def test_it_writes_where_it_says(tmp_path: Path, depth: int) -> None:
    status, before, after = run(tmp_path, "write", depth)
    assert status == 1
    assert after[: 100 * 4096] == bytes(100 * 4096)
    assert after[100 * 4096 :] == before[100 * 4096 :]


def test_it_reads_and_changes_nothing(tmp_path: Path) -> None:
    status, before, after = run(tmp_path, "read", 4)
    assert status == 1
    assert after == before


def test_a_request_that_fails_ends_it(tmp_path: Path) -> None:
    # All after the 256th of its places is beyond the disk's end, and so is place 300.
    kernel, path = tmp_path / "kernel.elf", tmp_path / "disk.raw"
    kernel.write_bytes(blk_kernel.build(pc.VIRTIO_MMIO, "read", 4096, 4, 300, 2 * DISK, sequential=True))
    path.write_bytes(bytes(DISK))
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--memory", "16M", "--kernel", str(kernel)]
    done = subprocess.run([*command, "--debug-exit", "--disk", str(path), "--timeout", "60"], capture_output=True)
    assert done.returncode == 15


def test_requests_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="requests"):
        blk_kernel.build(pc.VIRTIO_MMIO, "read", 4096, 33, 100, DISK)


@pytest.mark.kvm
def test_a_short_run_beside_qemu() -> None:
    short_run("blk")


@pytest.mark.kvm
def test_a_disk_that_another_process_serves_costs_no_exit_either(tmp_path: Path) -> None:
    requests = 2000
    kernel, disk, sock, stats = (tmp_path / name for name in ("kernel.elf", "disk.raw", "disk.sock", "stats.json"))
    kernel.write_bytes(blk_kernel.build(pc.VIRTIO_MMIO, "read", 4096, 32, requests, DISK))
    disk.write_bytes(bytes(DISK))
    kvmkit = [sys.executable, "-m", "kvmkit"]
    served = subprocess.Popen([*kvmkit, "serve-device", "blk", str(disk), "--socket", str(sock)])
    try:
        until = time.monotonic() + 20
        while not sock.exists() and time.monotonic() < until:
            time.sleep(0.02)
        options = ["--accel", "kvm", "--memory", "16M", "--kernel", str(kernel), "--debug-exit", "--timeout", "60"]
        options += ["--vhost-user", f"blk={sock}", "--stats", str(stats)]
        done = subprocess.run([*kvmkit, "run", *options], capture_output=True, text=True)
    finally:
        served.terminate()
        served.wait()
    if "/dev/kvm" in done.stderr and "warning:" not in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1, done.stderr
    exits = json.loads(stats.read_bytes())["exits"]
    assert exits.get("memory", exits.get("mmio", 0)) < 60, "the set-up's, and none for a request"


def test_what_fio_says_is_read() -> None:
    job = '{"read": {"io_bytes": 0, "iops": 0}, "write": {"io_bytes": 4096, "iops": 10.5}}'
    assert blk_fio.parse(b'fio: a note\n{"jobs": [%b]}' % job.encode()) == blk_fio.Result(10.5, 4096)
    for text in (b"", b"{}", b'{"jobs": []}', b'{"jobs": [{"read": {"io_bytes": 0, "iops": 0}}]}', b"{nothing"):
        assert blk_fio.parse(text) is None


@pytest.mark.guest
def test_fio_in_a_guest_on_both(tmp_path: Path) -> None:
    try:
        bench = blk_fio.Bench(images.ensure(), tmp_path, 100)
    except HostError as error:
        pytest.skip(f"it can't be built here: {error}")
    point = next(one for one in blk.POINTS if one.way == "write" and one.depth == 32)
    for side in ("kvmkit", "qemu") if qemu.version() is not None else ("kvmkit",):
        found = bench.run(side, point, 0.2)
        assert found.rate > 0
        assert found.cpu_per_gb is not None
        assert found.cpu_per_gb > 0
