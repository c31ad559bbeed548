"""A VM's disks changed while it runs: rates, sizes, discs, and SCSI devices that come and go."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.errors import KvmkitError
from kvmkit.machine.spec import Disk, ScsiDisk

from .conftest import Kvmkit

pytestmark = pytest.mark.guest
MIB = 1 << 20
WAIT = "for i in $(seq 50); do {} && exit 0; sleep 0.1; done; exit 1"


def until(vm: VM, condition: str) -> None:
    assert vm.exec(["sh", "-c", WAIT.format(condition)]).status == 0, (condition, vm.log()[-2000:])


def test_a_vms_disks_change(tmp_path: Path, home: Path, kvmkit: Kvmkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    paths = {name: tmp_path / name for name in ("disk", "scsi", "first.iso", "second.iso", "added")}
    for number, path in enumerate(paths.values()):
        path.write_bytes(bytes([65 + number]) * 4 * MIB)
    vm = VM.create(
        accel="tcg",
        rng=True,
        disks=(Disk(path=str(paths["disk"])),),
        scsi=(ScsiDisk(path=str(paths["scsi"])), ScsiDisk(path=str(paths["first.iso"]), cdrom=True)),
    )
    with vm:
        done = kvmkit("set", vm.name, "--disk", "0,size=6M,iops=20,iops_burst=1", "--rng", "bps=64,bps_burst=1")
        assert done.returncode == 0, done
        assert done.stdout.splitlines() == [
            f"disk 0: {6 * MIB} bytes, iops=20 iops_burst=1",
            "rng: bps=64 bps_burst=1",
        ]
        until(vm, f"test $(cat /sys/block/vda/size) = {6 * MIB // 512}")
        assert paths["disk"].stat().st_size == 6 * MIB
        began = time.monotonic()
        slow = ["dd", "if=/dev/vda", "of=/dev/null", "bs=4k", "count=9", "iflag=direct"]
        assert vm.exec(slow).status == 0
        assert time.monotonic() - began >= 0.35, "8 more than the burst, at 20 a second"
        assert vm.set(disk="0,iops=0,iops_burst=0") == (f"disk 0: {6 * MIB} bytes, no limit",)

        assert vm.attach_scsi(paths["added"], serial="late") == 2
        until(vm, "test -b /dev/sdb")
        shown = vm.exec(["sh", "-c", "sha256sum < /dev/sdb"]).stdout.split()[0].decode()
        assert shown == hashlib.sha256(paths["added"].read_bytes()).hexdigest()
        vm.detach_scsi(2)
        until(vm, "test ! -e /dev/sdb")
        with paths["added"].open("r+b") as file:  # it is ours again
            file.write(b"free")
        assert vm.attach_scsi(paths["added"]) == 2
        until(vm, "test -b /dev/sdb")

        assert vm.exec(["head", "-c", "1", "/dev/sr0"]).stdout == b"C"
        assert kvmkit("set", vm.name, "--scsi", "1,disc=second.iso", cwd=str(tmp_path)).returncode == 0
        until(vm, 'test "$(head -c 1 /dev/sr0)" = D')
        vm.set(scsi="1,disc=")
        assert vm.exec(["head", "-c", "1", "/dev/sr0"]).status != 0

        vm.pause()
        vm.set(disk="0,bps=1G")
        vm.resume()
        for changes, why in (
            ({"disk": "1,iops=5"}, "it has 0"),
            ({"disk": "0,size=1M"}, "can only grow"),
            ({"disk": "0,iops=lots"}, "a number a second"),
            ({"disk": "0,color=red"}, "no option"),
            ({"rng": "0"}, "no option"),
            ({"scsi": "0,disc=" + str(paths["added"])}, "no CD-ROM drive"),
            ({"scsi": "1,disc=/nowhere"}, "no such file"),
        ):
            with pytest.raises(KvmkitError, match=why) as refused:
                vm.set(**changes)
            assert refused.value.exit_status == 2
        with pytest.raises(KvmkitError, match="no such file"):
            vm.attach_scsi("/nowhere")
        with pytest.raises(KvmkitError, match="no SCSI device"):
            vm.detach_scsi(9)


def test_set_says_what_it_wants(kvmkit: Kvmkit) -> None:
    done = kvmkit("set", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert "such as --disk 0,iops=500" in done.stderr
    done = kvmkit("run", "--disk", "x,bps=fast", "--", "true")
    assert (done.returncode, "bps=10M" in done.stderr) == (2, True), done
