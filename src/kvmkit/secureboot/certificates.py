"""X.509 certificates, by the library `cryptography`, which comes with virt-firmware."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvmkit.errors import BadInput, HostError
from kvmkit.secureboot import files, guids
from kvmkit.secureboot.signatures import Signature

if TYPE_CHECKING:
    from types import ModuleType

    from cryptography.x509 import Certificate

T = TypeVar("T")


def library(name: str) -> ModuleType:
    """A module of virt-firmware, or of cryptography. HostError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise HostError("Secure Boot's keys need virt-firmware: pip install virt-firmware") from None


def from_file(path: Path) -> list[Signature]:
    """The certificates of a file, PEM or DER, as kvmkit's. BadInput: it has none, or something else."""
    data = files.read(path)
    x509 = library("cryptography.x509")
    serialization = library("cryptography.hazmat.primitives.serialization")
    try:
        with warnings.catch_warnings():  # of certificates that are old-fashioned
            warnings.simplefilter("ignore")
            if b"-----BEGIN" in data:
                found = x509.load_pem_x509_certificates(data)
            else:
                found = [x509.load_der_x509_certificate(data)]
    except (ValueError, x509.InvalidVersion):
        key = b"PRIVATE KEY-----" in data
        raise BadInput(
            f"{path}: is a private key; its certificate is wanted"
            if key
            else f"{path}: has no certificate (PEM or DER)"
        ) from None
    return [Signature(guids.CERT_X509, guids.KVMKIT, one.public_bytes(serialization.Encoding.DER)) for one in found]


def subject(signature: Signature) -> str:
    """The common name of whom a certificate is for, or all of the name; '' for what is no certificate."""
    common_name = library("cryptography.x509.oid").NameOID.COMMON_NAME

    def name(certificate: Certificate) -> str:
        common = certificate.subject.get_attributes_for_oid(common_name)
        return str(common[0].value) if common else certificate.subject.rfc4514_string()

    return _read(signature, name) or ""


def begins(signature: Signature) -> datetime | None:
    """Since when a certificate is valid, in UTC; None for what is no certificate."""
    return _read(signature, lambda certificate: certificate.not_valid_before_utc)


def _read(signature: Signature, what: Callable[[Certificate], T]) -> T | None:
    if signature.kind != guids.CERT_X509:
        return None
    x509 = library("cryptography.x509")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return what(x509.load_der_x509_certificate(signature.data))
    except Exception:  # a guest may have written it; the library's own errors are of several kinds
        return None
