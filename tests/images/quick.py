"""Imported by a process that is to build the image `debian`: apt's part is then over at once."""

from __future__ import annotations

from pathlib import Path

from kvmkit.guest import rootdisk
from kvmkit.guest.apt import Source
from kvmkit.guest.modules import ModuleSet
from kvmkit.guest.progress import Progress
from kvmkit.guest.tiny import Kernel


class NoApt:
    def __init__(self, directory: Path, progress: Progress) -> None: ...

    def update(self) -> None: ...

    def sources(self) -> list[Source]:
        return [Source("file:/nowhere", "stable", ("main",))]

    def download(self, packages: list[str]) -> dict[str, Path]:
        return dict.fromkeys(packages, Path("/dev/null"))


rootdisk.Apt = NoApt  # type: ignore[assignment,misc]  # in this process alone
rootdisk.newest_kernel = lambda apt: ("linux", "1")
rootdisk.read_kernel = lambda package, progress: Kernel("6", b"", ModuleSet(), {})
