"""Read the files of a Debian package, without unpacking it anywhere."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kvmkit.errors import HostError

FILE_MAX = 256 << 20  # no file we take is near it; a damaged header must not make us read without end


def files(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path without a leading slash, contents) of each regular file for which `wanted(path)`.

    HostError: the package is damaged. Paths are only compared, never used to write anything.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|", errorlevel=2) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if not member.isreg() or not wanted(path):
                    continue
                if member.size > FILE_MAX:
                    raise HostError(f"{package.name}: {path} is too large ({member.size} bytes)")
                reader = archive.extractfile(member)
                assert reader is not None
                yield path, reader.read()
        process.stdout.read()
        if process.wait():
            raise HostError(
                f"{package.name} can't be unpacked: {process.stderr.read().decode(errors='replace').strip()}"
            )
    except tarfile.TarError as error:
        raise HostError(f"{package.name} can't be unpacked: {error}") from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
