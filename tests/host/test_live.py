"""`kvmkit doctor` and `kvmkit host` on this very machine: as it is, as an ordinary user, and as root for real.

The real changes are made in a mount namespace of their own, where /etc and /var/lib are copies and /dev is private;
only the kernel's count of huge pages is shared with the rest of the machine, and it is put back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
NR = Path("/proc/sys/vm/nr_hugepages")
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Prepares the namespace, says it is ready, and keeps it until its input ends.
PREPARE = """
set -e
mount -t tmpfs tmpfs /mnt
for d in etc var/lib; do
    mkdir -p /mnt/$d.up /mnt/$d.work
    mount -t overlay overlay -o lowerdir=/$d,upperdir=/mnt/$d.up,workdir=/mnt/$d.work /$d
done
mkdir /mnt/dev
for d in null zero urandom kmsg tty; do touch /mnt/dev/$d; mount --bind /dev/$d /mnt/dev/$d; done
if [ -e /dev/kvm ]; then mknod -m 600 /mnt/dev/kvm c 10 232; fi
mount --rbind /mnt/dev /dev
echo ready
read _ || true
"""


def test_doctor_on_this_machine(kvmkit: Run) -> None:
    done = kvmkit("doctor", "--json")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert done.returncode == told["status"]
    rows = {row["id"]: row for row in told["rows"]}
    assert (rows["kvm.device"]["state"] == "ok") == os.path.exists("/dev/kvm")
    assert rows["kernel"]["text"] == os.uname().release
    plain = kvmkit("doctor")
    assert "\x1b" not in plain.stdout
    assert plain.returncode == done.returncode


@needs_root
def test_doctor_as_an_ordinary_user(kvmkit: Run) -> None:
    done = kvmkit("doctor", "--json", user=NOBODY)
    assert done.stderr == ""
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["user"]["text"].startswith(f"uid {NOBODY}")
    if os.path.exists("/dev/kvm") and not os.stat("/dev/kvm").st_mode & 0o006:
        assert rows["kvm.permission"]["fix"].startswith("sudo ")
        assert done.returncode != 0


@needs_root
def test_without_root_the_sudo_line_is_printed_and_nothing_done(kvmkit: Run) -> None:
    before = NR.read_text()
    words = ("hugepages", "enable", "--memory", "1G", "--persist")
    done = kvmkit("host", *words, user=NOBODY)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "sudo " in done.stderr
    assert done.stderr.rstrip().endswith("hugepages enable --memory 1G --persist")
    assert done.stderr.count("\n") == 1
    assert NR.read_text() == before


@pytest.mark.parametrize("topic", ["modules", "nested", "hugepages", "permissions"])
def test_status_of_this_machine(kvmkit: Run, topic: str) -> None:
    done = kvmkit("host", topic, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("host", "hugepages", "enable"), "--memory 1G"),
        (("host", "hugepages", "enable", "--memory", "much"), "'much' is no size"),
        (("host", "hugepages", "enable", "--memory", "1G", "--size", "3M"), "--size 3M"),
        (("host", "hugepages", "enable", "--memory", "1G", "--node", "77"), "--node 77"),
        (("host", "permissions", "enable", "--user", "no-such-user"), "no such user"),
        (("doctor", "--root", "/no/such/place"), "is no directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(kvmkit: Run, words: tuple[str, ...], said: str) -> None:
    done = kvmkit(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def namespace() -> Iterator[tuple[str, ...]]:
    """A command prefix that runs in the prepared mount namespace."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", PREPARE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != "ready\n":
            _, errors = holder.communicate()
            pytest.skip(f"no private mount namespace with overlays here: {errors.strip()}")
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")
    finally:
        holder.communicate("\n")


def files_of(prefix: tuple[str, ...]) -> str:
    """The content of /etc's files that may change, the directories of /dev, and the huge mounts, in the namespace."""
    script = (
        "cat /etc/fstab /etc/group /etc/gshadow; ls -lR /etc/sysctl.d /etc/modprobe.d /etc/tmpfiles.d /etc/udev;"
        "ls -l /dev; grep hugetlbfs /proc/self/mounts"
    )
    return subprocess.run([*prefix, "sh", "-c", script], capture_output=True, text=True).stdout


@needs_root
@pytest.mark.root
def test_huge_pages_for_real(kvmkit: Run, namespace: tuple[str, ...]) -> None:
    if int(NR.read_text()):
        pytest.skip("this machine's huge pages are in use")
    enable = ("host", "hugepages", "enable", "--memory", "8M", "--persist")
    before = files_of(namespace)
    try:
        dry = kvmkit(*enable, "--dry-run", prefix=namespace)
        assert dry.returncode == 0
        assert files_of(namespace) == before
        assert NR.read_text() == "0\n"

        done = kvmkit(*enable, prefix=namespace)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(dry.stdout)
        assert done.stdout[len(dry.stdout) :].startswith("HugePages_Total: 10 (2M each; asked for 10)\n")
        assert NR.read_text() == "10\n"
        state = files_of(namespace)
        assert "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,gid=" in state
        assert "mode=1770" in state
        assert "40-hugepage.conf" in state

        # Pages used by a process are counted, the process is named, and releasing them is refused meanwhile.
        script = (
            "import mmap, sys; f = open('/dev/hugepages/guest', 'w+b'); f.truncate(4 << 20);"
            "m = mmap.mmap(f.fileno(), 4 << 20); m[0] = 1; m[2 << 20] = 1; print('held', flush=True); sys.stdin.read()"
        )
        user = subprocess.Popen(
            [*namespace, sys.executable, "-c", script, "--name", "web"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert user.stdout is not None
            assert user.stdout.readline() == "held\n"
            told = json.loads(kvmkit("doctor", "--json", prefix=namespace).stdout)
            [row] = [row for row in told["rows"] if row["id"].startswith("hugepages.vm.")]
            assert (row["name"].strip(), row["text"]) == ("web", "uses 2 pages")
            refused = kvmkit("host", "hugepages", "disable", prefix=namespace)
            assert refused.returncode == 1
            assert "'web'" in refused.stderr
            assert NR.read_text() == "10\n"
        finally:
            user.communicate("")
        subprocess.run([*namespace, "rm", "/dev/hugepages/guest"], check=True)

        again = kvmkit(*enable, prefix=namespace)
        assert again.returncode == 0
        assert "#" not in again.stdout
        assert files_of(namespace) == state

        # As after a restart: the mount is gone, and is not tried to be taken back.
        subprocess.run([*namespace, "umount", "/dev/hugepages"], check=True)
        dry = kvmkit("host", "undo", "--all", "--dry-run", prefix=namespace)
        assert "umount" not in dry.stdout
        undone = kvmkit("host", "undo", "--all", prefix=namespace)
        assert (undone.returncode, undone.stderr) == (0, "")
        assert undone.stdout == dry.stdout
        assert files_of(namespace) == before
        assert NR.read_text() == "0\n"
    finally:
        NR.write_text("0\n")


@needs_root
@pytest.mark.root
def test_permissions_for_real(kvmkit: Run, namespace: tuple[str, ...]) -> None:
    before = files_of(namespace)
    enable = ("host", "permissions", "enable", "--user", "nobody", "--persist")
    dry = kvmkit(*enable, "--dry-run", prefix=namespace)
    done = kvmkit(*enable, prefix=namespace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == dry.stdout
    members = subprocess.run([*namespace, "getent", "group", "kvm"], capture_output=True, text=True).stdout
    assert members.rstrip().endswith(":nobody")
    disabled = kvmkit("host", "permissions", "disable", prefix=namespace)
    assert (disabled.returncode, disabled.stderr) == (0, "")
    assert files_of(namespace) == before


@needs_root
@pytest.mark.root
def test_a_step_that_fails_takes_back_those_before_it(kvmkit: Run, namespace: tuple[str, ...]) -> None:
    if int(NR.read_text()):
        pytest.skip("this machine's huge pages are in use")
    subprocess.run(
        [*namespace, "sh", "-c", "mkdir -p /etc/sysctl.d && mount -t tmpfs -o ro tmpfs /etc/sysctl.d"], check=True
    )
    before = files_of(namespace)
    try:
        done = kvmkit("host", "hugepages", "enable", "--memory", "8M", "--persist", prefix=namespace)
        assert done.returncode == 1
        assert "everything was taken back" in done.stderr
        assert files_of(namespace) == before
        assert NR.read_text() == "0\n"
    finally:
        NR.write_text("0\n")
