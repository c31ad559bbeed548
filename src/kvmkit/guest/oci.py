"""Container images into root disks: an OCI layout's layers, checked by their digests, joined into one tree.

Source: the OCI image specification (image-layout.md, manifest.md, config.md, layer.md).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import msgspec

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.guest.disk import archive
from kvmkit.guest.disk.tree import COPY, Tree
from kvmkit.guest.progress import Progress

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REF = "org.opencontainers.image.ref.name"
_INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_SMALL = 16 << 20
LAYER_MAX = 64 << 30


class Layout:
    """An OCI layout: a directory with oci-layout, index.json and blobs. BadInput: it is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not (directory / "oci-layout").is_file():
            raise BadInput(f"{directory}: no OCI layout: it has no file oci-layout")

    def manifest(self, tag: str = "") -> dict[str, Any]:
        """The manifest of an image for this kind of computer. Without a tag, there may be but one."""
        index = self._json(self._directory / "index.json", None)
        entries = _objects(index.get("manifests"), self._directory)
        if tag:
            entries = [each for each in entries if _tag(each) == tag]
        elif len(entries) > 1:
            tags = ", ".join(_tag(each) or "?" for each in entries)
            raise BadInput(f"{self._directory}: several images; name one as oci:{self._directory}:TAG, of {tags}")
        if not entries:
            raise BadInput(f"{self._directory}: no image{f' {tag!r}' if tag else ''} in it")
        entry = entries[0]
        for _depth in range(4):
            found = self._blob_json(entry)
            if entry.get("mediaType") not in _INDEX_TYPES and "layers" in found:
                return found
            entry = _for_this_computer(_objects(found.get("manifests"), self._directory), self._directory)
        raise BadInput(f"{self._directory}: its indexes lead nowhere")

    def config(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._blob_json(_objects([manifest.get("config")], self._directory)[0])

    def layers(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        """Descriptors of them, the lowest first."""
        return _objects(manifest.get("layers"), self._directory)

    def _blob_json(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        return self._json(self.blob(descriptor), str(descriptor.get("digest")))

    def _json(self, path: Path, digest: str | None) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                data = file.read(_SMALL + 1)
            if digest is not None and f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                raise BadInput(f"{path}: damaged: its SHA-256 is not {digest}")
            found = msgspec.json.decode(data)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise BadInput(f"{path}: {error}") from None
        if not isinstance(found, dict):
            raise BadInput(f"{path}: not what an OCI layout has there")
        return found

    def blob(self, descriptor: dict[str, Any]) -> Path:
        digest = str(descriptor.get("digest"))
        if _DIGEST.fullmatch(digest) is None:
            raise BadInput(f"{self._directory}: {digest[:80]!r} is no digest that kvmkit knows (sha256:...)")
        return self._directory / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _objects(given: object, where: Path) -> list[dict[str, Any]]:
    """`given` itself: a list of objects, or none. BadInput: something else."""
    if given is not None and not (isinstance(given, list) and all(isinstance(each, dict) for each in given)):
        raise BadInput(f"{where}: a manifest or an index in it is not what an OCI layout has there")
    return given or []


def _tag(entry: dict[str, Any]) -> str:
    notes = entry.get("annotations")
    return str(notes.get(_REF) or "") if isinstance(notes, dict) else ""


def _for_this_computer(entries: list[dict[str, Any]], where: Path) -> dict[str, Any]:
    for entry in entries:
        platform = entry.get("platform")
        if (
            isinstance(platform, dict)
            and platform.get("architecture") == "amd64"
            and platform.get("os", "linux") == "linux"
        ):
            return entry
    raise BadInput(f"{where}: no image for linux/amd64 in it")


def read(layout: Layout, manifest: dict[str, Any], work: Path, progress: Progress, held: ExitStack) -> Tree:
    """The layers joined. Their contents lie in files below `work`, open until `held` ends. KvmkitError: damaged."""
    tree = Tree()
    layers = layout.layers(manifest)
    for number, descriptor in enumerate(layers):
        progress.step(f"unpacking layer {number + 1} of {len(layers)}")
        file = held.enter_context((work / f"layer{number}.tar").open("w+b"))
        _unpack(layout.blob(descriptor), str(descriptor.get("digest")), file)
        file.seek(0)
        archive.add_tar(tree, cast(BinaryIO, file), whiteouts=True)
    return tree


def _unpack(path: Path, digest: str, out: IO[bytes]) -> None:
    """Check the blob's digest, then decompress it."""
    checksum = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(COPY):
                checksum.update(data)
            if f"sha256:{checksum.hexdigest()}" != digest:
                raise KvmkitError(f"{path}: damaged: its SHA-256 is not {digest}")
            file.seek(0)
            size = 0
            for data in _decompressed(file):
                size += len(data)
                if size > LAYER_MAX:
                    raise KvmkitError(f"{path}: a layer of more than {LAYER_MAX >> 30} GiB")
                out.write(data)
            out.write(bytes(-size % 512 + 1024))  # what some programs leave out at an archive's end
    except OSError as error:
        raise KvmkitError(f"{path}: {error.strerror or error}") from None
    out.flush()


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    import gzip
    import zlib

    magic = file.read(4)
    file.seek(0)
    try:
        if magic[:2] == b"\x1f\x8b":
            reader: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=file))
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            reader = cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(file))
        else:
            reader = file
        while data := reader.read(COPY):
            yield data
    except (zlib.error, EOFError, ValueError) as error:
        raise KvmkitError(f"{file.name}: can't be decompressed: {error}") from None


def locate(reference: str, work: Path, progress: Progress) -> tuple[Layout, str]:
    """The layout that a reference names, fetched by skopeo unless it is one of this machine's. Returns it and a tag.

    `oci:DIRECTORY[:TAG]`, a directory, or what skopeo knows (docker://HOST/NAME:TAG, containers-storage:...).
    """
    if reference.startswith("oci:"):
        directory, _colon, tag = reference.removeprefix("oci:").partition(":")
        return Layout(Path(directory)), tag
    if Path(reference).is_dir():
        return Layout(Path(reference)), ""
    if ":" not in reference:
        raise BadInput(f"{reference}: no directory, nor a reference such as docker://HOST/NAME:TAG or oci:DIR:TAG")
    if not shutil.which("skopeo"):
        raise HostError(f"pulling {reference} needs skopeo: apt-get install skopeo (as root)")
    progress.step(f"downloading {reference}")
    target = work / "layout"
    command = ["skopeo", "copy", "--quiet", "--override-os", "linux", "--override-arch", "amd64"]
    command += [reference, f"oci:{target}:image"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise KvmkitError(f"skopeo can't fetch {reference}: {said[-1].strip() if said else 'it gave no reason'}")
    return Layout(target), "image"
