"""One VM of the run, and who minds it: it is started again whenever it has ended, and its guest writes without end."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

from tests.cli.calling import COMMAND, environment

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import home, listing
from kvmkit.manager.listing import Row

DISK_BYTES = 128 << 20
KEPT = 24
"""Files that the guest leaves on its disk; what is older it removes."""
CHECKED = 8
"""Files, of those that the guest said were safe, that are compared at the end."""
LATE_SECONDS = 120.0
"""A verb that takes longer has hung."""

# `sync` comes before the word that a file is safe: from then on it may not be lost, whatever is killed.
WRITER = """
mount LABEL=chaos /data 2>/dev/null || mountpoint -q /data 2>/dev/null || grep -q ' /data ' /proc/mounts ||
    { mkdir -p /data && mount -t ext4 /dev/vda /data; } || exit 9
i=$1
while :; do
    { echo "file $i"; head -c $((i % 7 * 9000 + 100)) /dev/urandom; } >/data/f$i || exit 8
    sum=$(sha256sum </data/f$i) || exit 8
    sync /data/f$i || exit 8
    sync -f /data/f$i || exit 8
    echo "$i ${sum%% *}" || exit 7
    echo "$i" >/work/now 2>/dev/null
    echo "$i" >>/root/log 2>/dev/null
    rm -f /data/f$((i - KEPT))
    i=$((i + 1))
done
""".replace("KEPT", str(KEPT))


def call(*words: str, timeout: float = LATE_SECONDS) -> subprocess.CompletedProcess[str]:
    """`kvmkit WORDS` in the run's home."""
    return subprocess.run(
        [*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(),
        timeout=timeout, check=False,
    )  # fmt: skip


class ChaosVM:
    """Named `name`: a qcow2 disk by qemu-storage-daemon, a root disk of its own, a volume by virtiofsd, passt."""

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self.disk = work / f"{name}.qcow2"
        self.volume = work / f"{name}.volume"
        self.volume.mkdir()
        self.safe: dict[int, str] = {}
        """Files that are on the disk for good, by the guest's word, and their hashes."""
        self.ends: Counter[str] = Counter()
        """How it was found to have ended, and how often."""
        self.starts = 0
        self.trouble: list[str] = []
        """What should never be."""
        self.writer: subprocess.Popen[str] | None = None
        self._next = 1
        raw = work / f"{name}.raw"
        with raw.open("wb") as file:
            file.truncate(DISK_BYTES)
        for words in (
            ["mke2fs", "-q", "-t", "ext4", "-L", "chaos", str(raw)],
            ["qemu-img", "convert", "-O", "qcow2", str(raw), str(self.disk)],
        ):
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        raw.unlink()

    def create(self) -> None:
        words = ["create", "--name", self.name, "--accel", "tcg", "--memory", "192M", "--disk", str(self.disk)]
        words += ["--volume", f"{self.volume}:/work"] if os.geteuid() == 0 or shutil.which("virtiofsd") else []
        done = call(*words)
        if done.returncode:
            raise KvmkitError(f"create {self.name}: {done.stderr}")

    def row(self) -> Row:
        with home.open_home(self.name) as own:
            return listing.row(own)

    def mind(self, over: threading.Event) -> None:
        """Keep it running and its guest writing until `over`."""
        while not over.is_set():
            try:
                self._turn(over)
            except subprocess.TimeoutExpired as late:
                self.trouble.append(f"{late.cmd[len(COMMAND) :]} hung")
            except BadInput:
                time.sleep(0.1)  # it is being renamed, or removed and made again
            except KvmkitError as error:
                self.trouble.append(str(error))
                time.sleep(1)

    def _turn(self, over: threading.Event) -> None:
        row = self.row()
        if row.state == "paused":
            call("resume", self.name)
        elif row.state not in listing.LIVE:
            if row.ended is not None:
                self.ends[row.ended.reason] += 1
                if not row.ended.reason:
                    self.trouble.append(f"{self.name} is {row.state}, and nothing says why")
            done = call("start", self.name)
            self.starts += 1
            if done.returncode and "running already" not in done.stderr and "changing it" not in done.stderr:
                self._start_failed(done.stderr)
        else:
            self._write(over)

    def _start_failed(self, said: str) -> None:
        """A start may be killed, too; it may not leave anything that keeps the next one from starting."""
        self.ends["start failed"] += 1
        if "Traceback" in said or said.count("\n") > 1:
            self.trouble.append(f"start {self.name}: {said}")
        time.sleep(0.2)

    def _write(self, over: threading.Event) -> None:
        words = [*COMMAND, "exec", self.name, "--", "sh", "-c", WRITER, "writer", str(self._next)]
        self.writer = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(),
        )  # fmt: skip
        assert self.writer.stdout is not None
        assert self.writer.stderr is not None
        for line in self.writer.stdout:
            number, _, digest = line.strip().partition(" ")
            if number.isdigit() and len(digest) == 64:
                self.safe[int(number)] = digest
                self._next = int(number) + 1
            if over.is_set():
                self.writer.kill()
        said = self.writer.stderr.read()
        self.writer.wait()
        self.writer.stdout.close()
        self.writer.stderr.close()
        if "Traceback" in said:
            self.trouble.append(f"exec {self.name}: {said}")
        if self.writer.returncode in (7, 8, 9) and not over.is_set():
            self.trouble.append(f"{self.name}: its guest could not write ({self.writer.returncode}): {said.strip()}")
        self._next += 1  # the file that was being written counts for nothing
        time.sleep(random.uniform(0.0, 0.3))

    def processes(self) -> dict[str, list[int]]:
        """Its processes, by what they are: vmm, passt, qemu-storage-daemon, virtiofsd, exec."""
        found: dict[str, list[int]] = {}
        row = self.row()
        if row.pid:
            found["vmm"] = [row.pid]
            for pid, words in _descendants(row.pid):
                found.setdefault(os.path.basename(words[0]), []).append(pid)
        if self.writer is not None and self.writer.poll() is None:
            found["exec"] = [self.writer.pid]
        return {kind: pids for kind, pids in found.items() if kind in KINDS}


KINDS = ("vmm", "passt", "passt.avx2", "qemu-storage-daemon", "virtiofsd", "exec")


def _descendants(parent: int) -> list[tuple[int, list[str]]]:
    found = []
    try:
        children = Path(f"/proc/{parent}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
    except OSError:
        return []
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found.append((pid, words))
        found += _descendants(pid)
    return found
