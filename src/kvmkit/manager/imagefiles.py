"""Images by what others made: imported disks, pulled container images; and images written for others."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import ExitStack
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest import images, layer, library, oci, qemu_img, rootdisk, store
from kvmkit.guest.disk import archive, erofs, erofs_read
from kvmkit.guest.progress import Progress
from kvmkit.guest.store import Manifest

FORMATS = ("tar", "raw", "qcow2")


def name_of(source: str) -> str:
    """An image's name from a path or reference: debian-12 of /tmp/Debian-12.qcow2, nginx of docker://x/nginx:1."""
    last = re.split(r"[/\\]", source.rstrip("/"))[-1].lower()
    last = re.sub(r":.*", "", last) if "://" in source else last.rpartition(":")[2] or last
    last = re.sub(r"\.(raw|img|qcow2|vmdk|vhdx?|vdi|toml|tar)$", "", last)
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._") or "image"


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    """`config` of a container image's configuration. Source: the OCI image specification, config.md."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None


def _settings(config: object, reference: str) -> _Settings:
    try:
        return msgspec.convert(config or {}, _Settings)
    except msgspec.ValidationError as error:
        raise BadInput(f"{reference}: its config is none that a container image has: {error}") from None


def pull(reference: str, name: str, progress: Progress, *, replace: bool = False) -> Manifest:
    """A container image as an image of ours: its tree on a root disk, with the kernel and the agent of `debian`."""

    def fill(work: Path, progress: Progress) -> Manifest:
        layout, tag = oci.locate(reference, work, progress)
        found = layout.manifest(tag)
        settings = _settings(layout.config(found).get("config"), reference)
        base = images.ensure("debian", progress)
        with ExitStack() as held:
            tree = oci.read(layout, found, work, progress, held)
            progress.step("writing the root disk")
            rootdisk.adopt(tree, base, held, name)
            with (work / "image" / library.ROOT_DISK).open("w+b") as disk:
                erofs.write(tree, disk)
            packages = rootdisk.installed(tree)
        _take_kernel(base, work)
        return Manifest(
            release=base.release,
            append=base.append,
            packages=packages,
            source=reference,
            command=(settings.entrypoint or ()) + (settings.cmd or ()),
            env=settings.env or (),
            cwd=settings.working_dir or "",
            user=(settings.user or "").partition(":")[0],  # its group is as the guest's /etc/passwd has it
        )

    return library.make(name, fill, progress, replace=replace)


def _take_kernel(base: images.GuestImage, work: Path) -> None:
    for file in (base.kernel, base.initrd):
        layer.copy_sparse(file, work / "image" / file.name)


def import_disk(
    path: Path,
    name: str,
    progress: Progress,
    *,
    form: str = "",
    user_data: Path | None = None,
    cloud: bool = False,
    replace: bool = False,
) -> tuple[Manifest, str]:
    """A disk image with a system of its own on it. Returns the password that the cloud's seed sets; "" for none."""
    password = secrets.token_urlsafe(9) if cloud and user_data is None else ""

    def fill(work: Path, progress: Progress) -> Manifest:
        progress.step(f"converting {path.name}")
        known = qemu_img.to_raw(path, work / "image" / library.DISK, form)
        if cloud or user_data is not None:
            from kvmkit.manager import seed

            data = seed.user_data(user_data, password)
            seed.write(work / "image" / library.SEED, name, data)
            (work / "image" / library.USER_DATA).write_bytes(data)
        return Manifest(source=f"{path.name} ({known})")

    return library.make(name, fill, progress, replace=replace), password


def export(name: str, target: Path, form: str, progress: Progress, *, replace: bool = False) -> None:
    """Write an image to a file of that format. BadInput: it can't have that, or the file is there."""
    if form not in FORMATS:
        raise BadInput(f"--format {form}: there are {', '.join(FORMATS)}")
    if target.exists() and not replace:
        raise BadInput(f"{target} is there already; --force writes over it")
    if name in library.BUILT_IN:
        images.ensure(name, progress)
        directory = images.directory_of(name)
    else:
        directory = library.directories(name)[0]
    manifest = store.read(directory)
    if manifest is None:
        raise KvmkitError(f"the image {name} is damaged: {directory}")
    source = next((each for each in (library.ROOT_DISK, library.DISK) if each in manifest.files), None)
    if source is None:
        raise BadInput(f"the image {name} has no disk: it is all in its initramfs")
    if form == "tar" and source != library.ROOT_DISK:
        raise BadInput(f"the image {name} is a whole disk: export it as raw or qcow2")
    progress.step(f"writing {target.name}")
    work = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if form == "tar":
            with (directory / source).open("rb") as file, work.open("wb") as out:
                archive.write_tar(erofs_read.read(file), out)
        elif form == "raw":
            layer.copy_sparse(directory / source, work)
        else:
            qemu_img.call("convert", "-f", "raw", "-O", "qcow2", str(directory / source), str(work))
        work.replace(target)
    except OSError as error:
        raise KvmkitError(f"can't write {target}: {error.strerror}") from None
    finally:
        work.unlink(missing_ok=True)
        progress.close()
