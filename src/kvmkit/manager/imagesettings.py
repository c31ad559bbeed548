"""What an image of a container's says of the commands in it: environment, user, directory, and what it runs unasked."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True):
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""


NONE = Settings()


def of(image: str, directory: Path | None = None) -> Settings:
    """Those of a user's image; or of what a VM, whose directory this is, was begun with."""
    from kvmkit.guest import library, store
    from kvmkit.manager.rootdisk import DIRECTORY

    if not image or image in library.BUILT_IN:
        return NONE
    manifest = store.read(directory / DIRECTORY) if directory is not None else None
    manifest = manifest or store.read(library.root() / image)
    if manifest is None:
        return NONE
    env = dict(text.split("=", 1) for text in manifest.env if "=" in text)
    return Settings(manifest.command, env, manifest.cwd, manifest.user)
