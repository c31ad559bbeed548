"""Variable stores: read, written back, and whatever a guest may have left in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.secureboot import guids, signatures
from kvmkit.secureboot.signatures import Signature
from kvmkit.secureboot.variables import DB, PK, SECURE_BOOT_ENABLE, Variable
from kvmkit.secureboot.varstore import Store

from .conftest import image

FIRST = 0x64  # of the 4 MiB build: 72 bytes of volume header, 28 of the store's
END = 0x40000
WORK, SPARE = 0x41000, 0x42000  # the fault-tolerant writer's working block and spare area


def state_of_first(data: bytes, state: int) -> bytes:
    return data[: FIRST + 2] + bytes([state]) + data[FIRST + 3 :]


def test_a_distribution_s_store_is_read(enrolled: bytes) -> None:
    store = Store(enrolled, "it")
    platform = store.get(PK)
    assert platform is not None
    assert platform.attribute_names() == ["NV", "BS", "RT", "AT"]
    assert platform.when is not None
    assert b"Debian UEFI Secure Boot" in platform.data
    assert store.variables["Lang", guids.GLOBAL].data == b"eng\0"
    assert guids.name_of(store.variables["certdb", UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a")].guid) == "EfiCertDb"


def test_what_is_read_is_written_again(each: bytes) -> None:
    store = Store(each, "it")
    written = store.to_bytes()
    assert len(written) == len(each)
    assert Store(written, "it").variables == store.variables
    assert Store(written, "it").to_bytes() == written


def test_an_empty_store_is_written_as_it_was(empty: bytes) -> None:
    assert Store(empty, "it").variables == {}
    assert Store(empty, "it").to_bytes() == empty


def test_a_whole_image_has_its_store_at_the_beginning(enrolled: bytes) -> None:
    whole = enrolled + image("OVMF_CODE_4M.fd")
    store = Store(whole, "it")
    store.put(Variable("Mine", guids.KVMKIT, data=b"\1\2\3"))
    changed = store.to_bytes()
    assert changed[len(enrolled) :] == whole[len(enrolled) :]
    assert Store(changed[: len(enrolled)], "it").variables == store.variables


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)
VARIABLES = st.builds(
    Variable,
    name=NAMES,
    guid=st.uuids(),
    attributes=st.integers(0, 0xFFFFFFFE),
    data=st.binary(max_size=200),
    time=st.binary(min_size=16, max_size=16),
    monotonic_count=st.integers(0, 2**64 - 1),
    key_index=st.integers(0, 2**32 - 1),
)


@given(st.lists(VARIABLES, max_size=20))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_variables_come_back(empty: bytes, variables: list[Variable]) -> None:
    store = Store(empty, "it")
    for variable in variables:
        store.put(variable)
    read = Store(store.to_bytes(), "it")
    assert all(variable.when is None or variable.when.tzinfo for variable in read.variables.values())
    assert read.variables == {variable.key: variable for variable in variables}


def test_variables_that_do_not_fit_are_refused(empty: bytes) -> None:
    store = Store(empty, "mine.fd")
    room = END - FIRST
    store.put(Variable("A", guids.KVMKIT, data=bytes(room - 64)))
    assert len(store.to_bytes()) == len(empty)
    store.put(Variable("A", guids.KVMKIT, data=bytes(room - 63)))
    with pytest.raises(BadInput, match=r"^mine\.fd: its variables would take 262048 bytes"):
        store.to_bytes()


def test_a_name_may_be_anybody_s(empty: bytes) -> None:
    """Only with its GUID is it one variable."""
    store = Store(empty, "it")
    store.put(DB._replace(data=b"firmware's"))
    store.put(DB._replace(guid=guids.KVMKIT, data=b"another's"))
    read = Store(store.to_bytes(), "it").get(DB)
    assert read is not None
    assert read.data == b"firmware's"


# ---- updates that were cut short ----


@pytest.fixture
def one(empty: bytes) -> bytes:
    store = Store(empty, "it")
    store.put(SECURE_BOOT_ENABLE._replace(data=b"\1"))
    return store.to_bytes()


@pytest.mark.parametrize(("state", "there"), [(0x3F, True), (0x3E, True), (0x3D, False), (0x3C, False), (0x7F, False)])
def test_only_what_was_written_to_its_end_counts(one: bytes, state: int, there: bool) -> None:
    assert (Store(state_of_first(one, state), "it").get(SECURE_BOOT_ENABLE) is not None) == there


def test_the_successor_counts_and_not_what_it_replaces(one: bytes) -> None:
    store = Store(one, "it")
    first = one[FIRST : FIRST + 60 + 34 + 1 + 1]
    both = state_of_first(one, 0x3E)[: FIRST + len(first)] + first[:-2] + b"\0\xff" + one[FIRST + 2 * len(first) :]
    found = Store(both, "it").get(SECURE_BOOT_ENABLE)
    assert found is not None
    assert found.data == b"\0"
    assert len(store.variables) == len(Store(both, "it").variables) == 1


def test_a_header_that_was_being_written_hides_nothing_before_it(one: bytes) -> None:
    after = FIRST + 60 + 34 + 2
    begun = one[:after] + b"\xaa\x55" + one[after + 2 :]
    assert Store(begun, "it").variables == Store(one, "it").variables


# ---- the store being replaced as a whole ----


def rewriting(data: bytes, spare: bytes, *, header: int = 0b100, record: int = 0b101, before: int = 0) -> bytes:
    """A store of the 4 MiB build whose firmware notes that it copies `spare` to it; the flags as they are in flash."""
    write = struct.pack("<B23xQQ", 0xF8 | header, 1, 0) + struct.pack("<B7xQQQq", 0xF8 | record, 0, 0, END, -SPARE)
    done = struct.pack("<B23xQQ", 0xF8, 1, 8) + bytes(48)
    queue = done * before + write
    return data[: WORK + 32] + queue + data[WORK + 32 + len(queue) : SPARE] + spare[:END] + data[SPARE + END :]


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_store_that_is_being_replaced_is_refused(enrolled: bytes, empty: bytes, before: int) -> None:
    """At its next start the firmware would undo what is written now."""
    with pytest.raises(BadInput, match=r"^vars\.fd: its firmware was stopped while it wrote all of it: start the VM"):
        Store(rewriting(enrolled, empty, before=before), "vars.fd")


@pytest.mark.parametrize(
    ("header", "record"),
    [(0b000, 0b101), (0b101, 0b101), (0b100, 0b111), (0b100, 0b001)],
    ids=["all complete", "not allocated", "not yet in the spare area", "copied"],
)
def test_what_is_not_halfway_is_read(enrolled: bytes, empty: bytes, header: int, record: int) -> None:
    given = rewriting(enrolled, empty, header=header, record=record, before=2)
    assert Store(given, "it").variables == Store(enrolled, "it").variables


# ---- damage ----


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "has no edk2 variable store in it"),
        (lambda data: b"QFI\xfb" + bytes(9000), "has no edk2 variable store in it"),
        (lambda data: data[:-1], "is truncated: 540671 bytes of 540672"),
        (lambda data: data[:80], "is truncated"),
        (lambda data: data[:0x20] + b"\1" + data[0x21:], "does not fit its checksum"),
        (lambda data: data[:0x48] + bytes(16) + data[0x58:], "is not one of authenticated variables"),
        (lambda data: data[:0x5C] + b"\0" + data[0x5D:], "the variable store's header"),
        (lambda data: data[:0x58] + b"\xff\xff\xff\x7f" + data[0x5C:], "the variable store's header"),
        (lambda data: data[: FIRST + 40] + b"\xff\xff\xff" + data[FIRST + 43 :], "goes beyond the store's end"),
        (lambda data: data[: FIRST + 36] + b"\3" + data[FIRST + 37 :], "has no proper name"),
    ],
)
def test_damage_is_told_in_a_line(enrolled: bytes, damage: Callable[[bytes], bytes], message: str) -> None:
    packed = Store(enrolled, "it").to_bytes()
    with pytest.raises(BadInput) as caught:
        Store(damage(packed), "vars.fd")
    assert str(caught.value).startswith("vars.fd: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_random_change_is_read_or_refused(enrolled: bytes) -> None:
    """Never another error, and what is read can be written."""
    chance = random.Random(1)
    read = 0
    for _ in range(2000):
        data = bytearray(enrolled)
        for _ in range(chance.choice((1, 1, 3))):
            places = (range(FIRST), range(0x400), range(0x4000), range(WORK, WORK + 128))
            data[chance.choice(chance.choice(places))] ^= 1 << chance.randrange(8)
        if not chance.randrange(10):
            del data[chance.randrange(len(data)) :]
        try:
            store = Store(bytes(data), "it")
        except BadInput:
            continue
        read += 1
        assert Store(store.to_bytes(), "it").variables == store.variables
    assert 500 < read < 1900


# ---- signature lists ----

SIGNATURES = st.lists(
    st.builds(
        Signature,
        kind=st.sampled_from([guids.CERT_X509, guids.CERT_SHA256]),
        owner=st.sampled_from([guids.KVMKIT, guids.MICROSOFT]),
        data=st.binary(min_size=1, max_size=40),
    ),
    max_size=8,
)


@given(SIGNATURES)
def test_signatures_come_back(given: list[Signature]) -> None:
    assert signatures.parse(signatures.pack(given), "it") == given


@given(SIGNATURES, st.data())
def test_damaged_lists_are_refused_or_read(given: list[Signature], draw: st.DataObject) -> None:
    data = bytearray(signatures.pack(given))
    if data:
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at] ^= draw.draw(st.integers(1, 255))
        del data[draw.draw(st.integers(0, len(data))) :]
    try:
        found = signatures.parse(bytes(data), "db")
    except BadInput as error:
        assert str(error).startswith("db: is damaged")  # noqa: PT017  # either is right
    else:
        assert sum(len(one.data) for one in found) <= len(data)


def test_a_list_of_no_length_ends(empty: bytes) -> None:
    """A size of 0 would be walked for ever."""
    for sizes in (0, 0, 0), (28, 0, 0), (100, 0, 0), (100, 72, 0), (2**32 - 1, 0, 16):
        with pytest.raises(BadInput):
            signatures.parse(guids.CERT_X509.bytes_le + struct.pack("<III", *sizes) + bytes(72), "db")
