"""Keys of one's own: a platform key, a KEK and a db key, with which sbsign signs a boot loader."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kvmkit.errors import BadInput, HostError
from kvmkit.secureboot.certificates import library

NAMES = ("PK", "KEK", "db")
_BITS = 2048  # what each edk2 verifies
_DAYS = 3650


def generate(directory: Path, owner: str = "kvmkit") -> list[Path]:
    """Make PK, KEK and db in a directory: NAME.key, an RSA key, and NAME.crt, its certificate, both in PEM.

    They are this user's alone (0600). BadInput: a file of such a name is there, and none is written; HostError.
    """
    paths = {name: (directory / f"{name}.key", directory / f"{name}.crt") for name in NAMES}
    for path in (path for pair in paths.values() for path in pair):
        if os.path.lexists(path):
            raise BadInput(f"{path}: is there already; keys are never overwritten: give another directory")
    pairs = {name: _pair(f"{owner} {name}") for name in NAMES}
    made: list[Path] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in NAMES:
            for path, data in zip(paths[name], pairs[name], strict=True):
                _write(path, data, made)
        _sync(directory)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise HostError(f"can't make keys in {directory}: {error.strerror}") from None
        raise
    return made


def _pair(common_name: str) -> tuple[bytes, bytes]:
    """A private key and its certificate, signed by itself, in PEM."""
    x509 = library("cryptography.x509")
    rsa = library("cryptography.hazmat.primitives.asymmetric.rsa")
    hashes = library("cryptography.hazmat.primitives.hashes")
    serialization = library("cryptography.hazmat.primitives.serialization")
    key = rsa.generate_private_key(public_exponent=65537, key_size=_BITS)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(pem),
    )


def _write(path: Path, data: bytes, made: list[Path]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    made.append(path)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
