"""Keys put into stores: the same as virt-fw-vars does, beside which each change is looked at."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from kvmkit.errors import BadInput
from kvmkit.secureboot import enroll, guids, keys, signatures, state
from kvmkit.secureboot.generate import generate
from kvmkit.secureboot.signatures import Signature, Update
from kvmkit.secureboot.variables import CUSTOM_MODE, DATABASES, DB, DBX, KEK, PK, SECURE_BOOT_ENABLE, time_of
from kvmkit.secureboot.varstore import Store

Peer = Callable[..., bytes]


@pytest.fixture
def virt_fw_vars(tmp_path: Path) -> Peer:
    """The command of the page, from virt-firmware: an image in, an image out."""
    pytest.importorskip("virt.firmware", reason="virt-firmware is not installed")

    def run(data: bytes, *options: str) -> bytes:
        given, made = tmp_path / "given.fd", tmp_path / "made.fd"
        given.write_bytes(data)
        command = [sys.executable, "-m", "virt.firmware.vars", "--input", str(given), "--output", str(made), *options]
        subprocess.run(command, check=True, capture_output=True)
        return made.read_bytes()

    return run


@pytest.fixture
def own(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography", reason="virt-firmware is not installed")
    generate(tmp_path / "own")
    return tmp_path / "own"


def held(data: bytes, database: str) -> list[str]:
    return [one.subject for one in state.of(data).databases[database].certificates]


# ---- beside virt-fw-vars ----


def test_virt_fw_vars_secure_boot_enroll_redhat(each: bytes, virt_fw_vars: Peer) -> None:
    """The page's command: the very same file."""
    assert enroll.enroll(each, keys.named("redhat")) == virt_fw_vars(each, "--secure-boot", "--enroll-redhat")


def test_microsoft_s_keys(empty: bytes, virt_fw_vars: Peer) -> None:
    assert enroll.enroll(empty, keys.named("microsoft")) == virt_fw_vars(empty, "--secure-boot", "--enroll-microsoft")


def test_own_certificates(each: bytes, own: Path, virt_fw_vars: Peer) -> None:
    given = {name: own / f"{name}.crt" for name in ("PK", "KEK", "db")}
    options = [("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")]
    words = [word for option, name in options for word in (option, str(guids.KVMKIT), str(given[name]))]
    made = enroll.enroll(each, keys.collected(pk=given["PK"], kek=[given["KEK"]], db=[given["db"]]))
    assert made == virt_fw_vars(each, "--secure-boot", *words)


def test_enable(enrolled: bytes, virt_fw_vars: Peer) -> None:
    assert enroll.enable(enroll.disable(enrolled)) == virt_fw_vars(enrolled, "--secure-boot")


def test_virt_fw_vars_reads_what_is_written(empty: bytes, virt_fw_vars: Peer) -> None:
    made = enroll.enroll(empty, keys.named("redhat"))
    assert virt_fw_vars(made, "--secure-boot", "--enroll-redhat") == made


# ---- what it does ----


def test_enroll_disable_enable_reset(empty: bytes, own: Path) -> None:
    assert state.of(empty) == state.State(setup_mode=True, secure_boot=False, databases={})
    on = enroll.enroll(empty, keys.collected(pk=own / "PK.crt", db=[own / "db.crt"]))
    assert (state.of(on).setup_mode, state.of(on).secure_boot) == (False, True)
    off = enroll.disable(on)
    assert (state.of(off).setup_mode, state.of(off).secure_boot) == (False, False)
    assert state.of(off).databases == state.of(on).databases
    assert enroll.enable(off) == on
    assert enroll.reset(on) == enroll.reset(off) == empty


def test_reset_leaves_what_is_not_secure_boot_s(enrolled: bytes) -> None:
    before, after = Store(enrolled, "it"), Store(enroll.reset(enrolled), "it")
    gone = {variable.key for variable in (*DATABASES, SECURE_BOOT_ENABLE, CUSTOM_MODE)}
    assert after.variables == {key: variable for key, variable in before.variables.items() if key not in gone}


def test_a_platform_key_and_no_word_of_it_is_on(enrolled: bytes) -> None:
    """So OVMF takes it at its next start."""
    store = Store(enrolled, "it")
    store.remove(SECURE_BOOT_ENABLE)
    assert state.secure_boot(store)
    store.put(SECURE_BOOT_ENABLE._replace(data=b"\0"))
    assert not state.secure_boot(store)


def test_without_a_platform_key_it_can_not_be_on(empty: bytes, own: Path) -> None:
    with pytest.raises(BadInput, match="no platform key"):
        enroll.enable(empty)
    with pytest.raises(BadInput, match="no platform key"):
        enroll.enroll(empty, keys.collected(db=[own / "db.crt"]))


def test_a_set_takes_the_platform_over_and_a_file_is_added(enrolled: bytes, own: Path) -> None:
    assert held(enrolled, "PK")[0].startswith("Debian")
    taken = enroll.enroll(enrolled, keys.named("redhat"))
    assert not any(name.startswith("Debian") for name in held(taken, "PK") + held(taken, "KEK"))
    added = enroll.enroll(enrolled, keys.collected(kek=[own / "KEK.crt"], db=[own / "db.crt"]))
    assert held(added, "PK") == held(enrolled, "PK")
    assert held(added, "KEK") == [*held(enrolled, "KEK"), "kvmkit KEK"]
    assert held(added, "db") == [*held(enrolled, "db"), "kvmkit db"]
    assert enroll.enroll(added, keys.collected(db=[own / "db.crt"])) == added


def test_of_several_platform_keys_the_first_set_s_or_the_file_s(empty: bytes, own: Path) -> None:
    both = enroll.enroll(empty, keys.collected(["microsoft", "redhat"]))
    assert held(both, "PK") == held(enroll.enroll(empty, keys.named("microsoft")), "PK")
    assert "Red Hat Secure Boot (PK/KEK key 1)" in held(both, "KEK")
    assert len(held(both, "db")) == len(set(held(both, "db"))) == 5
    assert held(enroll.enroll(empty, keys.collected(["redhat"], pk=own / "PK.crt")), "PK") == ["kvmkit PK"]


def test_times_never_go_back(empty: bytes) -> None:
    """A firmware refuses an update that is older than its variable."""
    later = datetime(2040, 1, 1, tzinfo=UTC)
    store = Store(enroll.enroll(empty, keys.named("redhat")), "it")
    store.put(store.variables[DB.key]._replace(time=time_of(later)))
    again = Store(enroll.enroll(store.to_bytes(), keys.named("redhat")), "it")
    assert again.variables[DB.key].when == later
    assert again.variables[PK.key].when == datetime(2014, 10, 31, 11, 15, 37, tzinfo=UTC)


def test_a_guest_s_damage_in_db_is_told_and_reset_mends_it(enrolled: bytes) -> None:
    store = Store(enrolled, "it")
    store.put(store.variables[DB.key]._replace(data=store.variables[DB.key].data[:-1]))
    broken = store.to_bytes()
    for function in (
        lambda: state.of(broken, "vars.fd"),
        lambda: enroll.enroll(broken, keys.named("redhat"), "vars.fd"),
    ):
        with pytest.raises(BadInput, match=r"^vars\.fd: db: is damaged: "):
            function()
    assert held(enroll.enroll(enroll.reset(broken), keys.named("redhat")), "db")


def test_what_is_no_certificate_is_shown_and_kept(enrolled: bytes) -> None:
    store = Store(enrolled, "it")
    good = keys.named("redhat").pk[0].data
    version = good.index(b"\xa0\x03\x02\x01\x02") + 4  # which there is up to 2
    odd = Signature(guids.CERT_X509, guids.KVMKIT, b"\x30\x03odd")
    unknown = odd._replace(data=good[:version] + b"\x12" + good[version + 1 :])
    store.put(store.variables[KEK.key]._replace(data=signatures.pack([odd, unknown])))
    data = store.to_bytes()
    assert held(data, "KEK") == ["", ""]
    kept = Store(enroll.enroll(data, keys.Keys(kek=keys.named("redhat").kek)), "it").variables[KEK.key]
    assert signatures.parse(kept.data, "it")[:2] == [odd, unknown]


def test_whatever_a_guest_wrote_is_told_or_refused(enrolled: bytes) -> None:
    """Never another error: changes in the four databases, most of them within certificates."""
    packed = Store(enrolled, "it").to_bytes()
    used = len(packed[:0x40000].rstrip(b"\xff"))
    chosen, chance, read = keys.named("redhat"), random.Random(1), 0
    for _ in range(300):
        data = bytearray(packed)
        for _ in range(chance.choice((1, 2, 20))):
            data[chance.randrange(used)] = chance.randrange(256)
        try:
            state.of(bytes(data))
            enroll.enroll(bytes(data), chosen)
            read += 1
        except BadInput:
            continue
    assert 100 < read < 300


# ---- dbx ----


def update(hashes: list[bytes], when: datetime | None) -> bytes:
    """A dbx file: bare lists, or, with a time, as signed."""
    lists = signatures.pack(Signature(guids.CERT_SHA256, guids.MICROSOFT, one) for one in hashes)
    if when is None:
        return lists
    pkcs7 = b"a signature"
    head = (24 + len(pkcs7)).to_bytes(4, "little") + b"\x00\x02\xf1\x0e" + guids.CERT_PKCS7.bytes_le
    return time_of(when) + head + pkcs7 + lists


@pytest.mark.parametrize("when", [None, datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)], ids=["bare", "signed"])
def test_a_dbx_file_is_added(empty: bytes, tmp_path: Path, when: datetime | None, virt_fw_vars: Peer) -> None:
    one, two, three = (sha256(bytes([number])).digest() for number in range(3))
    file = tmp_path / "dbx.bin"
    file.write_bytes(update([one, two], when))
    first = enroll.enroll(empty, keys.collected(["redhat"], dbx=file))
    assert state.of(first).databases["dbx"].hashes == 2
    assert Store(first, "it").variables[DBX.key].when == (when or datetime(2010, 1, 1, tzinfo=UTC))
    if when:
        assert first == virt_fw_vars(empty, "--secure-boot", "--enroll-redhat", "--set-dbx", str(file))
    more = enroll.enroll(
        first, keys.Keys(dbx=Update([Signature(guids.CERT_SHA256, guids.KVMKIT, h) for h in (two, three)], None))
    )
    found = signatures.parse(Store(more, "it").variables[DBX.key].data, "it")
    assert [signature.data for signature in found] == [one, two, three]


@pytest.mark.parametrize("content", [b"", b"not a list of signatures at all", update([bytes(32)], None)[:-1]])
def test_a_dbx_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "dbx.bin"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"dbx\.bin: "):
        keys.collected(dbx=file)


# ---- files of keys ----


def test_der_and_pem_are_the_same(own: Path, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    der = tmp_path / "db.der"
    der.write_bytes(x509.load_pem_x509_certificate((own / "db.crt").read_bytes()).public_bytes(Encoding.DER))
    assert keys.collected(db=[der]) == keys.collected(db=[own / "db.crt"])


def test_a_file_of_several_certificates(own: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((own / "KEK.crt").read_bytes() + (own / "db.crt").read_bytes())
    assert len(keys.collected(db=[both]).db) == 2
    with pytest.raises(BadInput, match="has 2 certificates; the platform key is one"):
        keys.collected(pk=both)


def test_files_that_are_no_certificates(own: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a private key; its certificate is wanted"):
        keys.collected(db=[own / "db.key"])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut.pem").write_bytes((own / "db.crt").read_bytes()[:300])
    for name in "text", "cut.pem":
        with pytest.raises(BadInput, match=rf"{name}: has no certificate"):
            keys.collected(db=[tmp_path / name])
    with pytest.raises(BadInput, match="nothing: No such file"):
        keys.collected(kek=[tmp_path / "nothing"])
    with pytest.raises(BadInput, match="Is a directory"):
        keys.collected(kek=[tmp_path])
    with pytest.raises(BadInput, match="is not a file"):
        keys.collected(kek=[Path("/dev/zero")])
    with pytest.raises(BadInput, match="there are redhat and microsoft"):
        keys.collected(["debian"])


def test_keys_are_whole_or_not_there_and_never_overwritten(own: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in own.iterdir())
    assert names == ["KEK.crt", "KEK.key", "PK.crt", "PK.key", "db.crt", "db.key"]
    assert {path.stat().st_mode & 0o777 for path in own.iterdir()} == {0o600}
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    (own / "PK.key").unlink()
    with pytest.raises(BadInput, match=r"PK\.crt: is there already"):
        generate(own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == {
        name: data for name, data in before.items() if name != "PK.key"
    }
