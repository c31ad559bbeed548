"""The initrd that brings the test host's disk up: a newc cpio of busybox, a few modules, `init` and the agent."""

from __future__ import annotations

import stat
from pathlib import Path

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for m in {modules}; do $b insmod /$m; done
for d in /sys/block/*; do
    if [ "$($b cat $d/serial 2>/dev/null)" = root ]; then disk=${{d##*/}}; fi
done
$b mount -t ext4 /dev/$disk /root
$b mount -t tmpfs -o size=75% run /root/kvmkit
$b cp /agent.py /setup.sh /root/kvmkit/
for m in dev proc sys; do $b mount -o move /$m /root/$m; done
exec $b switch_root /root /bin/sh /kvmkit/setup.sh
"""

# The first process of the host. Python's stdout is the console, for what goes wrong before the port is up.
SETUP = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t devpts pts /dev/pts
hostname kvmhost
ulimit -n 65536
modprobe virtio_console
modprobe kvm_amd nested=1
echo "kvmhost: $(cut -d' ' -f1 /proc/uptime) s to the agent"
IDLE={idle} python3 /kvmkit/agent.py
echo o >/proc/sysrq-trigger
sleep 30
"""


def entry(name: str, mode: int, data: bytes = b"") -> bytes:
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def make(boot: Path, idle: int) -> bytes:
    """The archive's bytes. `boot` is the image's directory of that name, `idle` the agent's idle limit in seconds."""
    parts = [entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "root")]
    parts.append(entry("bin/busybox", stat.S_IFREG | 0o755, (boot / "busybox").read_bytes()))
    modules = (boot / "order").read_text().split()
    parts += [entry(name, stat.S_IFREG | 0o644, (boot / name).read_bytes()) for name in modules]
    parts.append(entry("init", stat.S_IFREG | 0o755, INIT.format(modules=" ".join(modules)).encode()))
    parts.append(entry("setup.sh", stat.S_IFREG | 0o755, SETUP.format(idle=idle).encode()))
    parts.append(entry("agent.py", stat.S_IFREG | 0o644, Path(__file__).with_name("agent.py").read_bytes()))
    return b"".join(parts) + entry("TRAILER!!!", 0)
