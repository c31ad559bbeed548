"""The default guest: Debian's cloud kernel, and a user space of busybox and our agent in an initramfs.

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
from kvmkit.guest.modules import ModuleSet
from kvmkit.guest.progress import Progress

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

_DRIVERS = "usr/lib/kvmkit/drivers"
_BUSES = ("acpi:LNRO0005:", "pci:v00001AF4", "virtio:")
_BEHIND = {
    "virtio_scsi": ["sd_mod", "sr_mod"],
    "virtio_pmem": ["nd_pmem"],
    "virtio_input": ["evdev"],
}
"""What drives that which stands behind a device; it announces itself too late for the agent to look."""

# Run by the agent where the kernel's command line has volumes.
_MOUNT_VOLUMES = """\
for word in $(cat /proc/cmdline); do
	case $word in kvmkit.volume=*) ;; *) continue ;; esac
	word=${word#*=}
	tag=${word%%:*} word=${word#*:}
	options=rw
	case $word in *:ro) options=ro word=${word%:ro} ;; esac
	path=$(printf '%b' "$(echo "$word" | sed 's/%/\\\\x/g')")
	mkdir -p "$path" && mount -t virtiofs -o $options "$tag" "$path" || echo "kvmkit: no volume at $path" > /dev/kmsg
done
"""

# What busybox's udhcpc has learned, in its environment.
_DHCP = """\
#!/bin/sh
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound | renew)
	ip addr replace $ip/${mask:-24} dev $interface
	[ -z "$mtu" ] || ip link set $interface mtu $mtu
	for gateway in $router; do ip route replace default via $gateway dev $interface; break; done
	[ -z "$dns" ] || {
		[ -z "$domain" ] || echo "search $domain"
		for server in $dns; do echo "nameserver $server"; done
	} > /etc/resolv.conf ;;
esac
"""


@dataclass(frozen=True)
class Built:
    kernel: bytes
    initrd: bytes
    release: str
    packages: dict[str, str]  # name -> version


def build(work: Path, progress: Progress) -> Built:
    """Make the image, downloading into `work`. HostError: apt, the network, or the compiler fails."""
    agent = compile_agent(work)
    apt = Apt(work / "apt", progress)
    apt.update()
    kernel_package = _kernel_package(apt.show(META_PACKAGE))
    packages = [kernel_package, *USER_SPACE]
    versions = {name: apt.show(name)["Version"] for name in packages}
    found = apt.download(packages)

    progress.step("unpacking the kernel")
    release, kernel, builtin, modules = _read_kernel(found[kernel_package])
    progress.step("writing the initramfs")
    out = io.BytesIO()
    cpio = CpioWriter(out)
    _add_base(cpio, agent)
    _add_packages(cpio, found)
    _add_modules(cpio, f"usr/lib/modules/{release}", builtin, modules)
    cpio.finish()
    return Built(kernel, out.getvalue(), release, versions)


def _kernel_package(meta: dict[str, str]) -> str:
    match = re.search(r"\b(linux-image-[0-9][^ ,(|]*)", meta.get("Depends", ""))
    if not match:
        raise HostError(f"{META_PACKAGE} {meta['Version']} names no kernel package: its Depends is not as expected")
    return match[1]


def _read_kernel(package: Path) -> tuple[str, bytes, bytes, ModuleSet]:
    """(release, kernel image, modules.builtin, all modules) of a kernel package."""
    pattern = re.compile(r"(?:usr/)?(?:boot/(vmlinuz)-(.+)|lib/modules/([^/]+)/(modules\.builtin|kernel/.+\.ko))")
    release, kernel, builtin, modules = "", b"", b"", ModuleSet()
    for path, data in deb.files(package, lambda path: pattern.fullmatch(path) is not None):
        match = pattern.fullmatch(path)
        assert match is not None
        if match[1]:
            release, kernel = match[2], data
        elif match[4] == "modules.builtin":
            builtin = data
        else:
            modules.add(match[4], data)
    if not kernel:
        raise HostError(f"{package.name} holds no boot/vmlinuz")
    if not modules.files:
        raise HostError(f"{package.name} holds no modules that can be read (compressed ones are not known yet)")
    return release, kernel, builtin, modules


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
    cpio.file("usr/lib/kvmkit/dhcp", _DHCP.encode(), 0o755)
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


def _add_modules(cpio: CpioWriter, directory: str, builtin: bytes, modules: ModuleSet) -> None:
    names = modules.closure(MODULES)
    for name in names:
        path, data = modules.files[name]
        cpio.file(f"{directory}/{path}", data)
    cpio.file(f"{directory}/modules.builtin", builtin)
    for name, text in modules.tables(names).items():
        cpio.file(f"{directory}/{name}", text.encode())
    cpio.file("usr/lib/kvmkit/volumes", _MOUNT_VOLUMES.encode())
    cpio.file(_DRIVERS, drivers(modules, names, f"/{directory}").encode())


def drivers(modules: ModuleSet, names: list[str], directory: str) -> str:
    """The agent's table: for each device that may be there, the start of its modalias and what to load, in order."""
    lines = []
    for name in names:
        paths: dict[str, None] = {}
        for each in [name, *_BEHIND.get(name, [])]:
            if each in modules.files:
                paths |= dict.fromkeys(modules.in_order(each))
        for alias in modules.aliases(name):
            prefix = alias.replace("acpi*:", "acpi:").partition("*")[0]
            if prefix.startswith(_BUSES):
                lines.append(" ".join([prefix, *(f"{directory}/{path}" for path in paths)]))
    return "\n".join([*lines, ""])
