"""Build the test host's disk: a minimal Debian with Python, QEMU (a peer to measure beside) and the cloud kernel.

Made by one mmdebstrap call, as root or not: everything that needs the tree's owners runs in its hooks. The result is a
directory in the cache, named by the recipe's digest:

    root.ext4     the root file system, used with QEMU's snapshot=on and so never written
    vmlinuz       the kernel
    boot/         what the initrd takes from the tree: busybox, the modules that reach the disk, and their order
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kvmkit.errors import HostError

SUITE = "bookworm"
PYTHON = (3, 11)
"""The Python of SUITE. The compiled modules of the checkout are loaded by it, so it must be the one they are for."""

TOOLS = {"mmdebstrap": "mmdebstrap", "qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs"}

PACKAGES = [
    "busybox-static",  # the initrd: load modules, mount, switch root
    "kmod",  # modprobe, lsmod, modinfo: what a person who follows a KVM page uses
    "python3-minimal",
    "libpython3-stdlib",
    "qemu-system-x86",  # the peer
    "ovmf",  # UEFI
]

BOOT_MODULES = ["virtio_pci", "virtio_blk"]

HOOK = r"""
set -eu
root=$1 out=$2
shift 2
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
# The kernel is unpacked, not installed: its package would build an initramfs that nobody boots.
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
cd "$out"
apt-get -qq download "$kernel"
dpkg-deb --fsys-tarfile "$kernel"_*.deb | tar -C "$root" -x ./lib/modules ./boot
rm "$kernel"_*.deb
mv "$root"/boot/vmlinuz-* vmlinuz
rm -f "$root"/boot/*
release=$(ls "$root/lib/modules")
chroot "$root" depmod "$release"
mkdir boot
cp "$root/bin/busybox" boot/
chroot "$root" modprobe --set-version "$release" --show-depends --all "$@" |
    while read -r insmod path _; do
        if [ "$insmod" = insmod ] && [ ! -e "boot/${path##*/}" ]; then
            cp "$root/$path" boot/
            echo "${path##*/}" >>boot/order
        fi
    done
mkdir -p "$root/kvmkit"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
# mmdebstrap has /proc, /sys and /dev mounted in the tree here; a plain bind mount shows what is under them.
mkdir tree
mount --bind "$root" tree
mke2fs -q -t ext4 -O ^has_journal -m 0 -d tree root.ext4 1G
umount tree
rmdir tree
chmod 644 vmlinuz root.ext4
"""

DROPPED = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "kvmkit" / "kvmhost"


def recipe() -> str:
    """The digest of all that decides what is built."""
    text = repr((SUITE, PACKAGES, BOOT_MODULES, HOOK, DROPPED))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sources() -> list[str]:
    """One-line apt sources of SUITE and its updates, as this machine's apt is set up to use them."""
    form = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    found = []
    for line in listed:
        origin, release, uri, component = line.split("|")
        if origin == "Debian" and release in (SUITE, f"{SUITE}-updates", f"{SUITE}-security") and component == "main":
            found.append(f"deb {uri} {release} {component}")
    if not found:
        raise HostError(f"apt here has no Debian {SUITE} source; run `apt-get update` or build the test host elsewhere")
    return list(dict.fromkeys(found))


def check_tools() -> None:
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool, path=search_path()) is None]
    if missing:
        raise HostError(f"the KVM test host needs packages: apt-get install {' '.join(missing)}")
    if sys.version_info[:2] != PYTHON:
        want = ".".join(map(str, PYTHON))
        raise HostError(f"the KVM test host has Python {want}; run it with a {want} virtual environment")


def search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def build() -> Path:
    """The image's directory, built first if the cache has none. Raises HostError with mmdebstrap's last lines."""
    check_tools()
    target = cache_directory() / recipe()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))
    try:
        work.chmod(0o755)
        (work / "hook").write_text(HOOK)
        hook = f'sh {work}/hook "$1" {work} {" ".join(BOOT_MODULES)}'
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command += ["--aptopt=APT::Install-Recommends false", f"--customize-hook={hook}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in DROPPED]
        command += ["--format=null", SUITE, "-", *sources()]
        environment = os.environ | {"PATH": search_path()}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode or not (work / "root.ext4").exists():
            last = " / ".join(done.stderr.strip().splitlines()[-3:])
            raise HostError(f"mmdebstrap could not build the KVM test host: {last}")
        (work / "hook").unlink()
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else built the same at the same time
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
