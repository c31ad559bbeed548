"""What a user types as a size or a count: taken, or refused in one line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.machine.spec import MachineSpec, host_memory, parse_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB), ("512m", 512 * MIB), ("64", 64 * MIB), ("1G", 1 << 30), ("0.5g", 512 * MIB),
        ("2048K", 2 * MIB), (" 16 MiB ", 16 * MIB), ("16MB", 16 * MIB), ("1025k", 1028 << 10),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a size"), ("lots", "not a size"), ("-512M", "not a size"), ("512X", "not a size"),
        ("1e3M", "not a size"), ("nan", "not a size"), ("١٢M", "not a size"), ("0", "at least"), ("4K", "at least"),
        ("9999T", "more than the"), ("9" * 400, "more than the"), ("9" * 400 + "." + "9" * 400 + "T", "more than the"),
    ],
)  # fmt: skip
def test_what_is_no_size_is_refused_in_one_line(text, why):
    with pytest.raises(BadInput, match=why) as error:
        parse_size(text)
    assert "\n" not in str(error.value)
    assert "--memory" in str(error.value)


@given(st.text())
def test_any_text_is_a_size_or_refused(text):
    try:
        size = parse_size(text)
    except BadInput:
        return
    assert 0 < size <= host_memory()
    assert size % 4096 == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cpus": 0}, "--cpus 0"), ({"cpus": 10_000}, "--cpus 10000"), ({"cpus": -1}, "--cpus -1"),
        ({"memory": 5000 * MIB + 1}, "multiple"), ({"memory": 1 << 60}, "more than the"),
        ({"memory": -4096}, "at least"),
        ({"timeout": 0.0}, "--timeout"), ({"timeout": float("nan")}, "--timeout"), ({"append": "a\0b"}, "null byte"),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_is_refused(options, why):
    with pytest.raises(BadInput, match=why):
        MachineSpec(kernel="k", **options).check()


def test_a_spec_survives_json():
    spec = MachineSpec(kernel="k", initrd=("a", "b"), cpus=2, timeout=1.5)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=MachineSpec) == spec
