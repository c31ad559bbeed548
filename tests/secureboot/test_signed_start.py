"""OVMF itself starts what the enrolled keys have signed, and nothing else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from kvmkit.errors import BadInput
from kvmkit.secureboot import enroll, guids, keys, state
from kvmkit.secureboot.generate import generate
from kvmkit.secureboot.variables import SECURE_BOOT_ENABLE, Variable
from kvmkit.secureboot.varstore import Store

from .efi import program, sign, starts, starts_in_qemu
from .test_varstore import rewriting


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cryptography", reason="virt-firmware is not installed")
    made = tmp_path_factory.mktemp("own")
    generate(made)
    return made


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    path = tmp_path / "unsigned.efi"
    path.write_bytes(program())
    return path


@pytest.fixture
def signed(tmp_path: Path, own: Path) -> Path:
    return sign(program(), own, tmp_path / "signed.efi")


@pytest.fixture
def store(tmp_path: Path, empty: bytes, own: Path) -> Path:
    """With keys of one's own."""
    path = tmp_path / "vars.fd"
    chosen = keys.collected(pk=own / "PK.crt", kek=[own / "KEK.crt"], db=[own / "db.crt"])
    path.write_bytes(enroll.enroll(empty, chosen))
    return path


def test_only_what_is_signed_starts(store: Path, signed: Path, unsigned: Path) -> None:
    assert starts(store, signed)
    assert not starts(store, unsigned)
    assert state.of(store.read_bytes()).secure_boot


def test_what_is_remembered_holds_on_another_machine(store: Path, signed: Path, unsigned: Path) -> None:
    """The variables that one machine's firmware has written are another's."""
    assert starts(store, signed)
    assert not starts_in_qemu(store, unsigned)
    assert starts_in_qemu(store, signed)
    assert not starts(store, unsigned)


def test_off_it_starts_anything(store: Path, unsigned: Path) -> None:
    store.write_bytes(enroll.disable(store.read_bytes()))
    assert starts(store, unsigned)
    after = state.of(store.read_bytes())
    assert (after.secure_boot, after.setup_mode) == (False, False)


def test_without_a_word_the_firmware_turns_it_on(store: Path, unsigned: Path) -> None:
    found = Store(store.read_bytes(), "it")
    found.remove(SECURE_BOOT_ENABLE)
    store.write_bytes(found.to_bytes())
    assert not starts(store, unsigned)
    assert Store(store.read_bytes(), "it").variables[SECURE_BOOT_ENABLE.key].data == b"\1"


def test_a_rewriting_store_is_the_firmware_s_to_finish(store: Path, signed: Path, empty: bytes) -> None:
    """Keys that were enrolled then would be gone: so it is refused until the firmware has copied its spare area."""
    other = Store(empty, "it")
    other.put(Variable("FromTheSpareArea", guids.KVMKIT, data=b"!"))
    store.write_bytes(rewriting(store.read_bytes(), other.to_bytes()))
    with pytest.raises(BadInput, match="start the VM once"):
        enroll.enable(store.read_bytes())
    starts(store, signed)
    found = Store(store.read_bytes(), "it")
    assert ("FromTheSpareArea", guids.KVMKIT) in found.variables
    assert state.setup_mode(found)


def test_another_s_keys_start_nothing_of_mine(store: Path, signed: Path, empty: bytes) -> None:
    store.write_bytes(enroll.enroll(empty, keys.named("redhat")))
    assert not starts(store, signed)
    store.write_bytes(enroll.reset(store.read_bytes()))
    assert starts(store, signed)


def test_dbx_goes_before_db(store: Path, signed: Path, own: Path) -> None:
    """The certificate that has signed it is withdrawn."""
    withdrawn = keys.collected(db=[own / "db.crt"]).db
    store.write_bytes(enroll.enroll(store.read_bytes(), keys.Keys(dbx=keys.Update(list(withdrawn), None))))
    assert not starts(store, signed)


def test_what_a_firmware_wrote_is_read_as_virt_firmware_reads_it(store: Path, signed: Path) -> None:
    assert starts(store, signed)
    code = """
import hashlib, sys
from virt.firmware.varstore.edk2 import Edk2VarStore
for one in Edk2VarStore(sys.argv[1]).get_varlist().values():
    print(one.name, one.guid, hashlib.sha256(one.data).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code, str(store)], check=True, capture_output=True, text=True)
    found = Store(store.read_bytes(), "it").variables.values()
    ours = {f"{one.name} {one.guid} {hashlib.sha256(one.data).hexdigest()}" for one in found}
    assert set(done.stdout.splitlines()) == ours
    assert len(ours) > 20
