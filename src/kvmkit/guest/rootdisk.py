"""The image `debian`: a root disk of Debian's packages, and the kernel and initramfs that start it.

The disk is one read-only file system (EROFS), shared by all VMs; each has a layer of its own above it, which the
agent joins to it (agent/root.c). All modules of the kernel are on the disk; the initramfs has those that find it.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kvmkit.guest import systemd as service_manager
from kvmkit.guest.apt import Apt
from kvmkit.guest.bootstrap import bootstrap, slim
from kvmkit.guest.cpio import CpioWriter
from kvmkit.guest.dhcp import USE_LEASE
from kvmkit.guest.disk import archive, erofs, erofs_read
from kvmkit.guest.disk.tree import Tree
from kvmkit.guest.drivers import DEVICES, DISKS, ROOT, TABLE, drivers, root_drivers
from kvmkit.guest.progress import Progress
from kvmkit.guest.tiny import Kernel, newest_kernel, read_kernel
from kvmkit.guest.volumes import MOUNT_VOLUMES

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage

PACKAGES = (
    "usr-is-merged", "bash", "coreutils", "apt", "python3", "iproute2", "iputils-ping", "procps", "ca-certificates",
    "kmod", "less", "e2fsprogs", "netbase", "udhcpc",
)  # fmt: skip

_HOSTNAME = "debian"
_PROFILE = """\
# Of kvmkit: a terminal that is not described here is shown as one that is.
[ -z "$TERM" ] || [ -e "/usr/share/terminfo/$(printf %.1s "$TERM")/$TERM" ] ||
	[ -e "/lib/terminfo/$(printf %.1s "$TERM")/$TERM" ] || TERM=linux
"""
_POWER = {"poweroff": "USR2", "halt": "USR1", "reboot": "TERM"}
"""What the agent, as the first process, does on which signal."""


def clean(tree: Tree) -> None:
    """Leave out what is of one system's life."""
    for path in ("var/lib/apt/lists", "var/cache/apt/archives", "run", "tmp", "dev", "proc", "sys"):
        tree.empty(path.encode())
    for path in ("root/.bash_history", "etc/resolv.conf"):
        tree.remove(path.encode())
    tree.file("etc/machine-id", b"")  # each VM is to have its own


def own_files(tree: Tree, hostname: str = _HOSTNAME) -> None:
    """What an image of ours has beside what its packages bring."""
    clean(tree)
    for path in ("dev", "proc", "sys", "run", "mnt", "root"):
        if tree.get(path.encode()) is None:
            tree.directory(path, 0o700 if path == "root" else 0o755)
    tree.directory("tmp", 0o1777)
    tree.file("etc/hostname", f"{hostname}\n".encode())
    tree.file("etc/hosts", f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n".encode())
    tree.file("etc/profile.d/kvmkit.sh", _PROFILE.encode())
    tree.file("usr/lib/kvmkit/volumes", MOUNT_VOLUMES.encode())
    tree.file("usr/lib/kvmkit/dhcp", USE_LEASE.encode(), 0o755)
    tree.symlink("etc/mtab", "/proc/self/mounts")
    for name, signal in _POWER.items():
        if tree.get(tree.resolve(f"usr/sbin/{name}".encode())) is None:
            tree.file(f"usr/local/sbin/{name}", f"#!/bin/sh\nexec kill -{signal} 1\n".encode(), 0o755)


def debian_files(tree: Tree) -> None:
    """What the image `debian` has beside that."""
    tree.directory("var/lib/apt/lists/partial", 0o700)
    tree.directory("var/cache/apt/archives/partial", 0o700)
    for path in ("apt/apt.conf.d/99mmdebstrap", "apt/preferences.d/kvmkit-build", "dpkg/dpkg.cfg.d/99mmdebstrap"):
        tree.remove(f"etc/{path}".encode())
    tree.file("etc/dpkg/dpkg.cfg.d/kvmkit-slim", slim())
    sources = tree.get(b"etc/apt/sources.list.d/0000sources.list")
    if sources is not None:
        tree.file("etc/apt/sources.list", sources.contents())
        tree.remove(b"etc/apt/sources.list.d/0000sources.list")


def adopt(tree: Tree, base: GuestImage, held: ExitStack, hostname: str) -> None:
    """Give a tree from elsewhere what a root disk of ours needs, from `base`: the kernel's modules, and our files.

    What it takes lies in the base's file, open until `held` ends.
    """
    assert base.root is not None
    found = erofs_read.read(held.enter_context(base.root.open("rb")))
    for path in (f"usr/lib/modules/{base.release}", TABLE):
        node = found.get(path.encode())
        if node is not None:
            tree.put(path.encode(), node)
    if tree.get(tree.resolve(b"lib/modules")) is None:
        tree.symlink("lib/modules", "../usr/lib/modules")
    own_files(tree, hostname)


def initramfs(kernel: Kernel) -> bytes:
    """What finds and mounts the root disk, but for the agent, which comes in an initramfs of its own."""
    out = io.BytesIO()
    cpio = CpioWriter(out)
    for name in kernel.modules.closure([*DISKS, *ROOT]):
        path, data = kernel.modules.files[name]
        cpio.file(f"m/{path}", data)
    cpio.file("drivers", root_drivers(kernel.modules, "/m").encode())
    cpio.finish()
    return out.getvalue()


def agent_initramfs(agent: bytes) -> bytes:
    """The agent and the places it mounts things at."""
    out = io.BytesIO()
    cpio = CpioWriter(out)
    for name in ("dev", "proc", "sys"):
        cpio.directory(name)
    cpio.character_device("dev/console", 5, 1)  # the kernel opens it before anything could mount /dev
    cpio.character_device("dev/null", 1, 3, 0o666)
    cpio.file("init", agent, 0o755)
    cpio.finish()
    return out.getvalue()


def add_drivers(tree: Tree, kernel: Kernel) -> None:
    """The table of what the agent loads from the disk."""
    names = [name for name in DEVICES if name in kernel.modules.files]
    tree.file(TABLE, drivers(kernel.modules, names, f"/usr/lib/modules/{kernel.release}").encode())


def build(work: Path, disk: BinaryIO, progress: Progress, *, systemd: bool = False) -> tuple[Kernel, dict[str, str]]:
    """Write the root disk to `disk`. Returns the kernel, and what it is all made of: package -> version.

    `systemd`: that of `debian-systemd`.

    HostError: apt, the network, or this machine's tools fail.
    """
    apt = Apt(work / "apt", progress)
    apt.update()
    sources = apt.sources()
    name, version = newest_kernel(apt)
    kernel = read_kernel(apt.download([name])[name], progress)
    _pack_modules(kernel, work / "modules.tar")
    hooks = [f"tar-in {work}/modules.tar /", f'chroot "$1" depmod {kernel.release}']
    packages = (*PACKAGES, *service_manager.PACKAGES) if systemd else PACKAGES
    found = bootstrap(work, sources, packages, hooks, progress)
    progress.step("writing the root disk")
    tree = Tree()
    with found.open("rb") as file:
        size = found.stat().st_size
        archive.add_tar(tree, file, advance=lambda done: progress.advance(done, 2 * size))
        own_files(tree)
        debian_files(tree)
        if systemd:
            service_manager.add_files(tree)
        add_drivers(tree, kernel)
        erofs.write(tree, disk)
        versions = installed(tree)
    return kernel, {name: version, **versions}


def installed(tree: Tree) -> dict[str, str]:
    """The packages in a tree, by dpkg's own notes: name -> version."""
    status = tree.get(b"var/lib/dpkg/status")
    found = {}
    for paragraph in (status.contents().decode("utf-8", "replace") if status else "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed") and "Version" in fields:
            found[fields.get("Package", "")] = fields["Version"]
    return dict(sorted(found.items()))


def _pack_modules(kernel: Kernel, path: Path) -> None:
    directory = f"usr/lib/modules/{kernel.release}"
    with tarfile.open(path, "w") as tar:
        for name, data in [*kernel.modules.files.values(), *kernel.tables.items()]:
            member = tarfile.TarInfo(f"./{directory}/{name}")
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
