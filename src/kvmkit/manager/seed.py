"""cloud-init's seed: a disc named cidata, on which a cloud image finds what it is to be (its NoCloud source)."""

from __future__ import annotations

import io
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, HostError

if TYPE_CHECKING:
    from kvmkit.machine import MachineSpec

LARGEST = 1 << 20
_DEFAULT = """\
#cloud-config
password: {password}
chpasswd: {{ expire: false }}
ssh_pwauth: false
disable_root: false
locale: "no"
{keys}write_files:
  - path: /etc/systemd/system/kvmkit-ssh.socket
    content: |
{socket}  - path: /etc/systemd/system/kvmkit-ssh@.service
    content: |
{service}runcmd:
  - [systemctl, daemon-reload]
  - [systemctl, enable, --now, kvmkit-ssh.socket]
"""
"""The locale stays as the image has it: by itself cloud-init sets en_US.UTF-8, and fails where that was not generated.
Quoted, as before 23 it wants a string there."""
_META = "instance-id: {name}\nlocal-hostname: {name}\n"


def user_data(path: Path | None, password: str) -> bytes:
    """The user's file, or one that sets a password, this user's ssh keys and kvmkit's, and has sshd listen on vsock.

    BadInput: no such file.
    """
    if path is None:
        from kvmkit.guest import systemd
        from kvmkit.manager import ssh

        found = sorted(Path.home().glob(".ssh/id_*.pub"))
        keys = [key.read_text(errors="replace").strip() for key in found]
        if shutil.which("ssh-keygen"):
            keys.append(ssh.public_key())
        lines = "ssh_authorized_keys:\n" + "".join(f"  - {key}\n" for key in keys) if keys else ""
        socket, service = (textwrap.indent(unit, " " * 6) for unit in (systemd.SSH_SOCKET, systemd.SSH_SERVICE))
        return _DEFAULT.format(password=password, keys=lines, socket=socket, service=service).encode()
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
    files = {"user-data": user, "meta-data": _META.format(name=hostname).encode()}
    for name, data in files.items():
        iso = "/" + name.replace("-", "_").upper() + ".;1"
        disc.add_fp(io.BytesIO(data), len(data), iso, rr_name=name, joliet_path=f"/{name}")
    disc.write(str(target))
    disc.close()


def attached(machine: MachineSpec, directory: Path, given: str) -> MachineSpec:
    """The machine with a seed of this user-data, made in the VM's directory at its first start. BadInput, HostError."""
    import msgspec

    from kvmkit.guest import library
    from kvmkit.machine.spec import Disk

    path = directory / library.SEED
    if not path.exists():
        write(path, directory.name, user_data(Path(given), ""))
    others = tuple(disk for disk in machine.disks if Path(disk.path).name != library.SEED)  # an image's own
    return msgspec.structs.replace(machine, disks=(*others, Disk(path=str(path), readonly=True)))
