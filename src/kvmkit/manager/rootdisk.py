"""A VM's root disk: its image's, which is only read and shared, and a layer of its own above it.

    <machine>/root/    vmlinuz  initrd  root.erofs  image.json     the image it was begun with, linked
    <machine>/layer.raw                                            what it has changed

A VM that is thrown away keeps its changes in its memory, unless its spec asks for a disk. One that is kept stays with
the image it was begun with, also when that is removed or built anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvmkit.errors import BadInput, HostError
from kvmkit.machine.spec import Disk
from kvmkit.manager.home import Busy, Home

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.guest.progress import Progress
    from kvmkit.machine import MachineSpec

DIRECTORY = "root"
LAYER = "layer.raw"
BASE_SERIAL, LAYER_SERIAL = "kvmkit-base", "kvmkit-layer"
"""By which the agent knows them (agent/root.c). They come after the VM's other disks, whose names so stay."""

NONE = "it has no root disk of its own: it keeps its changes in memory, or runs a kernel or a disk of yours"


def base(image: GuestImage) -> tuple[Disk, ...]:
    return (Disk(path=str(image.root), readonly=True, serial=BASE_SERIAL, queues=1),) if image.root is not None else ()


def pinned(directory: Path, progress: Progress | None = None) -> GuestImage | None:
    """The image that a VM was begun with."""
    from kvmkit.guest import images, store

    manifest = store.load(directory / DIRECTORY, frozenset({"vmlinuz", "initrd", images.ROOT_DISK}))
    return None if manifest is None else images.with_agent(directory / DIRECTORY, manifest, progress)


def whole(name: str, directory: Path | None) -> tuple[Disk, ...]:
    """The disks of an image that is a whole disk: the VM's own copy, or one that is thrown away; and cloud-init's."""
    from kvmkit.guest import images, library

    seed: Path | None
    if directory is not None and (directory / library.DISK).exists():
        disk = Disk(path=str(directory / library.DISK))
        seed = directory / library.SEED if (directory / library.SEED).exists() else None
    else:
        image = images.of_library(name)
        disk, seed = Disk(path=str(image.disk), snapshot=True), image.seed
    return (disk, *([Disk(path=str(seed), readonly=True)] if seed is not None else []))


def check_whole(name: str, size: int) -> None:
    """BadInput: a copy of that image, which is a whole disk, can't have `size` bytes. 0: as many as the image."""
    from kvmkit.guest import library

    least = (library.root() / name / library.DISK).stat().st_size
    if 0 < size < least:
        raise BadInput(f"--root-size: the disk of the image {name} has {least >> 20} MiB: a copy can only be larger")


def _own_disk(machine: MachineSpec, directory: Path, size: int) -> MachineSpec:
    """Copy the image's disk, the machine's first, into the VM's directory, with its holes."""
    from kvmkit.guest import layer, library

    target = directory / library.DISK
    if target.exists():
        return machine
    image = Path(machine.disks[0].path).parent
    disks = list(machine.disks)
    work = directory / f".{library.DISK}"
    try:
        work.unlink(missing_ok=True)
        layer.copy_sparse(image / library.DISK, work)
        if size > work.stat().st_size:
            os.truncate(work, size)
        if (image / library.SEED).exists():
            _own_seed(image, directory)
            disks[1] = msgspec.structs.replace(disks[1], path=str(directory / library.SEED))
        work.rename(target)
    except OSError as error:
        raise HostError(f"can't copy the image's disk into {directory}: {error.strerror}") from None
    finally:
        work.unlink(missing_ok=True)
    disks[0] = Disk(path=str(target))
    return msgspec.structs.replace(machine, disks=tuple(disks))


def _own_seed(image: Path, directory: Path) -> None:
    """The seed of an image, with the VM's name."""
    from kvmkit.guest import layer, library
    from kvmkit.manager import seed

    (directory / library.SEED).unlink(missing_ok=True)
    if (image / library.USER_DATA).exists():
        seed.write(directory / library.SEED, directory.name, (image / library.USER_DATA).read_bytes())
    else:
        layer.copy_sparse(image / library.SEED, directory / library.SEED)


def with_layer(machine: MachineSpec, directory: Path, size: int) -> MachineSpec:
    """The machine with the VM's layer, made if it is not there yet, and its image linked. HostError: it can't be."""
    from kvmkit.guest import layer, library

    if machine.firmware and machine.disks and os.path.dirname(machine.disks[0].path).startswith(f"{library.root()}/"):
        return _own_disk(machine, directory, size)
    if not any(disk.serial == BASE_SERIAL for disk in machine.disks):
        return machine
    path = directory / LAYER
    if not path.exists():
        machine = _pin(machine, directory)
        layer.make(path, size or layer.DEFAULT)
    disk = Disk(path=str(path), serial=LAYER_SERIAL)
    return msgspec.structs.replace(machine, disks=(*machine.disks, disk))


def number(machine: MachineSpec) -> int:
    """Which of the machine's disks is the VM's own root disk. BadInput: it has none."""
    for index, disk in enumerate(machine.disks):
        if disk.serial == LAYER_SERIAL or _is_own(disk.path):
            return index
    raise BadInput(NONE)


def _is_own(path: str) -> bool:
    """Whether it is a VM's copy of an image that is a whole disk."""
    from kvmkit.guest import library
    from kvmkit.manager import home

    return os.path.basename(path) == library.DISK and Path(path).parent.resolve().parent == home.root().resolve()


def size_of(text: str) -> int:
    """BadInput: no root disk can have that size."""
    from kvmkit.guest import layer
    from kvmkit.machine.spec import parse_size

    size = parse_size(text, "--root-size", least=1)
    layer.check_size(size)
    return size


def grow(home: Home, text: str) -> str:
    """Enlarge the root disk of a VM that does not run; what it is now, in words. BadInput: it can't be. Busy: it runs.

    One that was never started gets it at its start.
    """
    where = f"--root-size {text}"
    size = size_of(text)
    with home.changing():
        if home.running():
            raise Busy(f"{home.name} was started meanwhile; try again")
        path, made = _found(home)
        if path is not None and size < path.stat().st_size:
            raise BadInput(f"{where}: smaller than it is: what is behind that would be lost; it can only grow")
        if path is not None and made:
            try:
                os.truncate(path, size)
            except OSError as error:
                raise HostError(f"{where}: {path}: {error.strerror}") from None
        note_size(home, size)
    return f"root disk: {size} bytes"


def _found(home: Home) -> tuple[Path | None, bool]:
    """The root disk of a VM that does not run, or the image's that it will be a copy of; and whether it is the VM's.
    BadInput: it has none."""
    from kvmkit.guest import images, library
    from kvmkit.manager import spec

    for name in (LAYER, library.DISK):
        if (home.path / name).exists():
            return home.path / name, True
    wanted = home.spec()
    image = wanted.image or images.default()
    if spec.is_disk(image):
        return library.root() / image / library.DISK, False
    if not wanted.has_root_disk():
        raise BadInput(NONE)
    return None, False


def note_size(home: Home, size: int) -> None:
    """Keep it in the VM's spec."""
    from kvmkit.guest import layer
    from kvmkit.manager import files, spec
    from kvmkit.manager.home import SPEC

    wanted = home.spec()
    try:
        layer.check_size(size)
    except BadInput:
        return  # a disk image that is smaller than any layer: it is a file of its own, and has its size
    text = f"{size >> 10}K"
    if wanted.root_size == text or home.load().temporary:
        return
    try:
        files.replace(home.directory, SPEC, spec.encode(msgspec.structs.replace(wanted, root_size=text)), sync=True)
    except OSError as error:
        raise HostError(f"can't note the root disk's size: {error.strerror}") from None


def _pin(machine: MachineSpec, directory: Path) -> MachineSpec:
    """Link the image's files into the VM's directory: they are then there as long as it is."""
    from kvmkit.guest import layer, store

    root = next(disk.path for disk in machine.disks if disk.serial == BASE_SERIAL)
    image = Path(root).parent
    target = directory / DIRECTORY
    if image == target:
        return machine
    work = directory / f".{DIRECTORY}"
    try:
        store.remove_tree(work)
        work.mkdir()
        for file in (*(store.read(image) or store.Manifest()).files, store.MANIFEST):
            try:
                os.link(image / file, work / file)
            except OSError:  # another file system
                layer.copy_sparse(image / file, work / file)
        store.remove_tree(target)
        work.rename(target)
    except OSError as error:
        store.remove_tree(work)
        raise HostError(f"can't keep the image's files in {directory}: {error.strerror}") from None

    def moved(path: str) -> str:
        return str(target / os.path.basename(path)) if os.path.dirname(path) == str(image) else path

    return msgspec.structs.replace(
        machine,
        kernel=moved(machine.kernel),
        initrd=tuple(moved(path) for path in machine.initrd),
        disks=tuple(msgspec.structs.replace(disk, path=moved(disk.path)) for disk in machine.disks),
    )
