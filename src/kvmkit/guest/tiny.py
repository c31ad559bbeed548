"""The image `tiny`: Debian's cloud kernel, and a user space of busybox and our agent in an initramfs.

Small, because every megabyte of initramfs is copied page by page at each boot, and on a software CPU that
is felt. Modules lie in it unpacked, with their signatures, and are loaded when something asks for them.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

from kvmkit.errors import HostError
from kvmkit.guest import deb
from kvmkit.guest.agent_build import compile_agent
from kvmkit.guest.apt import Apt
from kvmkit.guest.cpio import CpioWriter
from kvmkit.guest.dhcp import USE_LEASE
from kvmkit.guest.drivers import TABLE, drivers
from kvmkit.guest.modules import ModuleSet
from kvmkit.guest.progress import Progress
from kvmkit.guest.volumes import MOUNT_VOLUMES

META_PACKAGE = "linux-image-cloud-amd64"
USER_SPACE = ["busybox-static", "base-files"]

MODULES = """
    virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_balloon virtio_rng virtio_input virtio_mem
    virtio_pmem nd_pmem virtio_scsi sd_mod sr_mod virtiofs fuse vmw_vsock_virtio_transport vsock
    isofs libcrc32c ext4 overlay loop tun evdev button qemu_fw_cfg ptp_kvm kvm kvm_amd kvm_intel irqbypass
""".split()

_NOT_APPLETS = {"busybox", "init", "linuxrc"}  # the agent is this system's init
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_ETC = {
    "hostname": "debian\n",
    "hosts": "127.0.0.1\tlocalhost debian\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:104:\nnogroup:x:65534:\n",
    "shells": "/bin/sh\n/bin/ash\n",
    "nsswitch.conf": "hosts: files dns\n",
    "profile": f"export PATH={_PATH}\nexport PS1='\\u@\\h:\\w\\$ '\numask 022\n",
}


@dataclass(frozen=True)
class Built:
    kernel: bytes
    initrd: bytes
    release: str
    packages: dict[str, str]  # name -> version


@dataclass(frozen=True)
class Kernel:
    """What a kernel's package holds."""

    release: str
    image: bytes
    modules: ModuleSet
    tables: dict[str, bytes]
    """modules.builtin and what else depmod reads."""


def build(work: Path, progress: Progress) -> Built:
    """Make the image, downloading into `work`. HostError: apt, the network, or the compiler fails."""
    agent = compile_agent(work)
    apt = Apt(work / "apt", progress)
    apt.update()
    name, version = newest_kernel(apt)
    versions = {name: version, **{each: apt.show(each)["Version"] for each in USER_SPACE}}
    found = apt.download([name, *USER_SPACE])
    kernel = read_kernel(found[name], progress)
    progress.step("writing the initramfs")
    out = io.BytesIO()
    cpio = CpioWriter(out)
    _add_base(cpio, agent)
    _add_packages(cpio, found)
    _add_modules(cpio, kernel)
    cpio.finish()
    return Built(kernel.image, out.getvalue(), kernel.release, versions)


def newest_kernel(apt: Apt) -> tuple[str, str]:
    """The package of the cloud kernel, and its version."""
    meta = apt.show(META_PACKAGE)
    match = re.search(r"\b(linux-image-[0-9][^ ,(|]*)", meta.get("Depends", ""))
    if not match:
        raise HostError(f"{META_PACKAGE} {meta['Version']} names no kernel package: its Depends is not as expected")
    return match[1], apt.show(match[1])["Version"]


def read_kernel(package: Path, progress: Progress) -> Kernel:
    """The kernel and all its modules."""
    progress.step("unpacking the kernel")
    wanted = r"boot/(vmlinuz)-(.+)|lib/modules/[^/]+/(modules\.(?:builtin.*|order)|kernel/.+\.ko)"
    pattern = re.compile(rf"(?:usr/)?(?:{wanted})")
    release, image, modules, tables = "", b"", ModuleSet(), {}
    for path, data in deb.files(package, lambda path: pattern.fullmatch(path) is not None):
        match = pattern.fullmatch(path)
        assert match is not None
        if match[1]:
            release, image = match[2], data
        elif match[3].startswith("modules."):
            tables[match[3]] = data
        else:
            modules.add(match[3], data)
    if not image:
        raise HostError(f"{package.name} holds no boot/vmlinuz")
    if not modules.files:
        raise HostError(f"{package.name} holds no modules that can be read (compressed ones are not known yet)")
    return Kernel(release, image, modules, tables)


def _add_base(cpio: CpioWriter, agent: bytes) -> None:
    # Debian's merged /usr; and one directory for all programs, as there is but one program.
    for name, target in ("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("usr/sbin", "bin"):
        cpio.symlink(name, target)
    for name in ("dev", "proc", "sys", "run", "mnt", "usr/bin", "usr/lib", "usr/local/bin", "var/log"):
        cpio.directory(name)
    cpio.directory("tmp", 0o1777)
    cpio.directory("var/tmp", 0o1777)
    cpio.directory("root", 0o700)
    cpio.symlink("var/run", "/run")
    cpio.symlink("etc/mtab", "/proc/self/mounts")
    cpio.character_device("dev/console", 5, 1)  # the kernel opens it before anything could mount /dev
    cpio.character_device("dev/null", 1, 3, 0o666)
    cpio.file("init", agent, 0o755)
    cpio.directory("usr/lib/kvmkit")
    cpio.file("usr/lib/kvmkit/dhcp", USE_LEASE.encode(), 0o755)
    for name, text in _ETC.items():
        cpio.file(f"etc/{name}", text.encode())


def _add_packages(cpio: CpioWriter, found: dict[str, Path]) -> None:
    busybox = b""
    for path, data in deb.files(found["busybox-static"], lambda path: path.endswith("bin/busybox")):
        busybox = data
        cpio.file(f"usr/bin/{path.rpartition('/')[2]}", data, 0o755)
    for name in sorted(set(applets(busybox)) - _NOT_APPLETS):
        cpio.symlink(f"usr/bin/{name}", "busybox")
    names = {"usr/lib/os-release", "etc/debian_version", "etc/issue", "etc/host.conf"}
    for path, data in deb.files(found["base-files"], lambda path: path in names):
        cpio.file(path, data)
    cpio.symlink("etc/os-release", "../usr/lib/os-release")


def applets(busybox: bytes) -> list[str]:
    """The commands in a busybox binary: a run of NUL-ended names, sorted, of which "[" is the first.

    Read from the file, not asked of it, so that this works on a host that can't execute it.
    """
    start = busybox.find(b"\0[\0[[\0")
    if start < 0:
        raise HostError("the package busybox-static is not as expected: it holds no list of commands")
    end = busybox.index(b"\0\0", start)
    return busybox[start + 1 : end].decode("ascii").split("\0")


def _add_modules(cpio: CpioWriter, kernel: Kernel) -> None:
    directory, modules = f"usr/lib/modules/{kernel.release}", kernel.modules
    names = modules.closure(MODULES)
    for name in names:
        path, data = modules.files[name]
        cpio.file(f"{directory}/{path}", data)
    cpio.file(f"{directory}/modules.builtin", kernel.tables.get("modules.builtin", b""))
    for name, text in modules.tables(names).items():
        cpio.file(f"{directory}/{name}", text.encode())
    cpio.file("usr/lib/kvmkit/volumes", MOUNT_VOLUMES.encode())
    cpio.file(TABLE, drivers(modules, names, f"/{directory}").encode())
