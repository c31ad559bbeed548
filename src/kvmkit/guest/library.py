"""The images that a user made: built, imported or pulled. They lie where nothing is made again by itself.

<data>/images/<name>/    image.json, and either  vmlinuz initrd root.erofs  or  disk.raw [seed.iso user-data]
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput
from kvmkit.guest import store
from kvmkit.guest.progress import Progress
from kvmkit.guest.store import Manifest
from kvmkit.paths import cache_dir, data_dir

BUILT_IN = ("debian", "debian-systemd", "tiny")
ROOT_DISK, DISK, SEED, USER_DATA = "root.erofs", "disk.raw", "seed.iso", "user-data"
_WORK = re.compile(r"\.(.+)\.([0-9]+)", re.ASCII)  # as store.making calls it
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


def root() -> Path:
    path = data_dir() / "images"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def names() -> list[str]:
    """Of the images a user made."""
    return sorted(path.name for path in root().iterdir() if not path.name.startswith(".") and path.is_dir())


def check_name(name: str) -> str:
    """`name` itself. BadInput when no image can be made by it."""
    if name in BUILT_IN:
        raise BadInput(f"{name} is an image that kvmkit builds itself: choose another name")
    if _NAME.fullmatch(name) is None or name.endswith((".toml", ".json", ".lock")):
        raise BadInput(f"{name!r} can't be an image's name: give up to 63 small letters, digits, '-', '_' and '.'")
    return name


def unknown(name: str) -> BadInput:
    """The error for an image that is not there."""
    import difflib

    known = [*BUILT_IN, *names()]
    near = difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return BadInput(f"no guest image {name!r}; {hint}; a command goes after --: kvmkit run -- {name}")


def exists(name: str) -> bool:
    return name in BUILT_IN or (_NAME.fullmatch(name) is not None and (root() / name / store.MANIFEST).exists())


def needed(directory: Path) -> frozenset[str]:
    """The files of an image of that kind."""
    manifest = store.read(directory)
    if manifest is not None and DISK in manifest.files:
        return frozenset({DISK})
    return frozenset({"vmlinuz", "initrd", ROOT_DISK})


def directories(name: str) -> list[Path]:
    """Where an image lies: of one that kvmkit builds, also those of other versions. BadInput: there is none."""
    if name in BUILT_IN:
        base = cache_dir() / "images" / name
        return sorted(path for path in base.glob("*") if (path / store.MANIFEST).exists()) if base.exists() else []
    if not exists(name):
        raise unknown(name)
    return [root() / name]


def remove(name: str) -> None:
    """VMs that were begun with it keep its files. BadInput: there is none. HostError: it can't be, or not all of it."""
    found = directories(name)
    if not found:
        raise BadInput(f"the image {name} is not built yet")
    for directory in found:
        with store.locked(directory):
            store.discard(directory)
        directory.with_name(directory.name + ".lock").unlink(missing_ok=True)


def prune(current: dict[str, Path]) -> tuple[list[Path], list[Path]]:
    """Remove builds of kvmkit's images that are not `current` (name -> directory), and what was half made.

    Returns what was removed, and what the file system does not let go. VMs that were begun with one keep its files.
    """
    gone: list[Path] = []
    kept: list[Path] = []
    for stale in [*(cache_dir() / "images").glob("*/.*"), *root().glob(".*")]:
        found = _WORK.fullmatch(stale.name)
        if found is None or Path(f"/proc/{found[2]}").exists():
            continue
        with store.locked(stale.with_name(found[1])):  # its process may be one of another container's
            _remove(stale, gone, kept)
    for name, keep in current.items():
        base = cache_dir() / "images" / name
        for directory in sorted(path for path in base.glob("*") if path.is_dir()) if base.exists() else []:
            if directory == keep or directory.name.startswith("."):
                continue
            with store.locked(directory):
                _remove(directory, gone, kept)
            if not directory.exists():
                directory.with_name(directory.name + ".lock").unlink(missing_ok=True)
    return gone, kept


def _remove(path: Path, gone: list[Path], kept: list[Path]) -> None:
    """Remove a directory, if it is still there, and note it where it belongs."""
    if path.exists():
        store.remove_tree(path)
        (kept if path.exists() else gone).append(path)


def make(
    name: str, fill: Callable[[Path, Progress], Manifest], progress: Progress, *, replace: bool = False
) -> Manifest:
    """Make an image: `fill` writes its files below WORK/image. BadInput: there is one of that name already."""
    directory = root() / check_name(name)

    def absent() -> None:
        if directory.exists() and not replace:
            raise BadInput(f"there is an image {name} already: `kvmkit image rm {name}` first, or give --force")

    absent()
    with store.locked(directory, progress), store.terminable():
        absent()
        with store.making(directory, progress) as work:
            manifest = fill(work, progress)
            progress.step("storing the image")
            return store.finish(work, directory, msgspec.structs.replace(manifest, created=time.time()))
