"""Guest images by name: built on first use, kept in the cache, replaced whole or not at all.

    <cache>/images/tiny/<key>/      vmlinuz  initrd                 all in an initramfs, the agent too
    <cache>/images/debian/<key>/    vmlinuz  initrd  root.erofs     a root disk, and the initramfs that mounts it
    <cache>/images/debian-systemd/<key>/                            the same, with systemd
    <cache>/images/agent/<key>/     initrd                          the agent, for those with a root disk

The key tells what made the image (its recipe, and the agent that is in it), so a newer kvmkit builds anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest import library, store
from kvmkit.guest.agent_build import source_key
from kvmkit.guest.progress import Progress, Silent
from kvmkit.guest.recipe import APPEND, ROOT, SYSTEMD, TINY
from kvmkit.guest.store import Manifest
from kvmkit.paths import cache_dir

NAMES = library.BUILT_IN
ROOT_DISK = library.ROOT_DISK
_TINY_FILES = frozenset({"vmlinuz", "initrd"})
_ROOT_FILES = _TINY_FILES | {ROOT_DISK}


class GuestImage(msgspec.Struct, frozen=True):
    kernel: Path
    initrd: Path
    release: str  # what `uname -r` says in it
    append: str  # kernel parameters it wants, without those that depend on the machine
    packages: dict[str, str]  # name -> version of what it is made of
    root: Path | None = None  # its root disk
    agent: Path | None = None  # the initramfs with the agent, where that is one of its own
    disk: Path | None = None  # a whole disk, with a system and a boot loader of its own
    seed: Path | None = None  # cloud-init's disc

    @property
    def initramfs(self) -> tuple[Path, ...]:
        """All that the kernel is to unpack, in order."""
        return (self.initrd, self.agent) if self.agent is not None else (self.initrd,)


DEFAULT = "debian"


def default() -> str:
    """The image of a VM that names none: debian, or what KVMKIT_IMAGE says."""
    return os.environ.get("KVMKIT_IMAGE") or DEFAULT


def ensure(name: str = "tiny", progress: Progress | None = None) -> GuestImage:
    """The image, built first if it is not there or damaged. While another process builds it, wait for that.

    BadInput: no such image. HostError: it can't be built; nothing half-made is left.
    """
    if name not in NAMES and library.exists(name):
        return of_library(name, progress)
    directory = directory_of(name)
    make, needed = (_make_tiny, _TINY_FILES) if name == "tiny" else (_make_root, _ROOT_FILES)
    if name == "debian-systemd":
        make = _make_systemd
    manifest = _ensure(directory, needed, make, progress)
    return with_agent(directory, manifest, progress)


def of_library(name: str, progress: Progress | None = None) -> GuestImage:
    """An image that the user made. KvmkitError: it is damaged."""
    directory = library.root() / name
    manifest = store.load(directory, library.needed(directory))
    if manifest is None:
        raise KvmkitError(f"the image {name} is damaged: remove it (kvmkit image rm {name}) and make it again")
    return with_agent(directory, manifest, progress)


def with_agent(directory: Path, manifest: Manifest, progress: Progress | None = None) -> GuestImage:
    """The image in a directory; with a root disk, it has the agent of this kvmkit."""
    image = GuestImage(
        directory / "vmlinuz", directory / "initrd", manifest.release, manifest.append, manifest.packages
    )  # fmt: skip
    if library.DISK in manifest.files:
        seed = directory / library.SEED if library.SEED in manifest.files else None
        return msgspec.structs.replace(image, disk=directory / library.DISK, seed=seed)
    if ROOT_DISK not in manifest.files:
        return image
    agent = cache_dir() / "images" / "agent" / source_key()
    _ensure(agent, frozenset({"initrd"}), _make_agent, progress)
    return msgspec.structs.replace(image, root=directory / ROOT_DISK, agent=agent / "initrd")


def verify(name: str = "tiny") -> list[str]:
    """Read the whole image and compare with its checksums. Returns what is wrong, a line each; [] is good."""
    return store.wrong(directory_of(name))


def remove(name: str = "tiny") -> None:
    """Forget the image; the next `ensure` builds it anew, from the packages of that day."""
    directory = directory_of(name)
    with store.locked(directory):
        store.remove_tree(directory)


def directory_of(name: str) -> Path:
    if name not in NAMES:
        raise BadInput(f"there is no guest image {name!r}; known: {', '.join(NAMES)} (or give --kernel and --initrd)")
    keys = {"tiny": f"{TINY}-{source_key()}", "debian": f"{ROOT}", "debian-systemd": f"{ROOT}.{SYSTEMD}"}
    return cache_dir() / "images" / name / f"{store.FORMAT}.{keys[name]}"


def current() -> dict[str, Path]:
    """Where this kvmkit has its images, built or not, and its agent."""
    return {**{name: directory_of(name) for name in NAMES}, "agent": cache_dir() / "images" / "agent" / source_key()}


def _ensure(
    directory: Path,
    needed: frozenset[str],
    make: Callable[[Path, Progress], Manifest],
    progress: Progress | None,
) -> Manifest:
    manifest = store.load(directory, needed)
    if manifest is not None:
        return manifest
    progress = progress or Silent()
    with store.locked(directory, progress), store.terminable():
        manifest = store.load(directory, needed)  # somebody else may have made it meanwhile
        if manifest is None:
            with store.making(directory, progress) as work:
                manifest = make(work, progress)
                progress.step("storing the image")
                manifest = store.finish(work, directory, msgspec.structs.replace(manifest, created=time.time()))
    return manifest


def _make_tiny(work: Path, progress: Progress) -> Manifest:
    from kvmkit.guest import tiny  # only who builds needs it, and what it imports

    built = tiny.build(work, progress)
    store.write(work / "image" / "vmlinuz", built.kernel)
    store.write(work / "image" / "initrd", built.initrd)
    return Manifest(release=built.release, append=APPEND, packages=built.packages, source="kvmkit")


def _make_root(work: Path, progress: Progress, *, systemd: bool = False) -> Manifest:
    from kvmkit.guest import rootdisk

    with (work / "image" / ROOT_DISK).open("w+b") as disk:
        kernel, packages = rootdisk.build(work, disk, progress, systemd=systemd)
    store.write(work / "image" / "vmlinuz", kernel.image)
    store.write(work / "image" / "initrd", rootdisk.initramfs(kernel))
    return Manifest(release=kernel.release, append=APPEND, packages=packages, source="kvmkit")


def _make_systemd(work: Path, progress: Progress) -> Manifest:
    from kvmkit.guest import systemd

    made = _make_root(work, progress, systemd=True)
    return msgspec.structs.replace(made, append=f"{APPEND} {systemd.APPEND}")


def _make_agent(work: Path, progress: Progress) -> Manifest:
    from kvmkit.guest import rootdisk
    from kvmkit.guest.agent_build import compile_agent

    store.write(work / "image" / "initrd", rootdisk.agent_initramfs(compile_agent(work)))
    return Manifest(source="kvmkit")
