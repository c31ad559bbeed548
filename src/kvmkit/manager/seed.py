"""cloud-init's seed: a disc named cidata, on which a cloud image finds what it is to be (its NoCloud source)."""

from __future__ import annotations

import io
from pathlib import Path

from kvmkit.errors import BadInput, HostError

LARGEST = 1 << 20
_DEFAULT = """\
#cloud-config
password: {password}
chpasswd: {{ expire: false }}
ssh_pwauth: false
{keys}"""


def user_data(path: Path | None, password: str) -> bytes:
    """The user's file, or one that sets a password and this user's ssh keys. BadInput: no such file."""
    if path is None:
        found = sorted(Path.home().glob(".ssh/id_*.pub"))
        keys = [key.read_text(errors="replace").strip() for key in found]
        lines = "ssh_authorized_keys:\n" + "".join(f"  - {key}\n" for key in keys) if keys else ""
        return _DEFAULT.format(password=password, keys=lines).encode()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"--user-data {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise BadInput(f"--user-data {path}: is larger than cloud-init's data can be")
    return data


def write(target: Path, hostname: str, user: bytes) -> None:
    """Write the disc. HostError: pycdlib is not installed."""
    try:
        from pycdlib import PyCdlib
    except ImportError:
        raise HostError("a cloud image's seed needs pycdlib: pip install pycdlib") from None
    disc = PyCdlib()
    disc.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    files = {"user-data": user, "meta-data": f"instance-id: {hostname}\nlocal-hostname: {hostname}\n".encode()}
    for name, data in files.items():
        iso = "/" + name.replace("-", "_").upper() + ".;1"
        disc.add_fp(io.BytesIO(data), len(data), iso, rr_name=name, joliet_path=f"/{name}")
    disc.write(str(target))
    disc.close()
