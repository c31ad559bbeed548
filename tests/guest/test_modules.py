from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.errors import KvmkitError
from kvmkit.guest.modules import ModuleSet, modinfo, module_name


def module(*pairs: str) -> bytes:
    """A relocatable ELF file with nothing but a .modinfo section (and the names of sections)."""
    info = b"".join(pair.encode() + b"\0" for pair in pairs)
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    sections = [(0, 0, 0, 0, 0, 0), (1, 1, 0, 0, info_at, len(info)), (10, 3, 0, 0, names_at, len(names))]
    table = b"".join(struct.pack("<IIQQQQIIQQ", *section, 0, 0, 1, 0) for section in sections)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, names_at + len(names), 0, 64, 0, 0, 64, len(sections), 2
    )
    return header + info + names + table


def some_set() -> ModuleSet:
    modules = ModuleSet()
    modules.add("kernel/lib/base.ko", module("depends="))
    modules.add("kernel/lib/mid-dle.ko", module("depends=base"))
    modules.add("kernel/net/top.ko", module("depends=base,mid-dle", "softdep=pre: extra absent", "alias=virtio:d1v*"))
    modules.add("kernel/lib/extra.ko", module("depends="))
    modules.add("kernel/lib/other.ko", module("depends="))
    return modules


def test_modinfo_keeps_order_and_repeats() -> None:
    assert modinfo(module("alias=a", "depends=", "alias=b=c")) == [("alias", "a"), ("depends", ""), ("alias", "b=c")]


def test_names_are_the_kernels() -> None:
    assert module_name("kernel/arch/x86/kvm/kvm-amd.ko") == "kvm_amd"


def test_closure_takes_needs_and_leaves_the_rest() -> None:
    assert some_set().closure(["top", "built_in"]) == ["base", "extra", "mid_dle", "top"]


def test_tables_list_what_is_needed_first_last() -> None:
    modules = some_set()
    tables = modules.tables(modules.closure(["top"]))
    assert "kernel/net/top.ko: kernel/lib/mid-dle.ko kernel/lib/base.ko\n" in tables["modules.dep"]
    assert "kernel/lib/base.ko:\n" in tables["modules.dep"]
    assert "alias virtio:d1v* top\n" in tables["modules.alias"]
    assert "softdep top pre: extra absent\n" in tables["modules.softdep"]


def test_a_need_that_is_nowhere_is_said() -> None:
    modules = ModuleSet()
    modules.add("kernel/a.ko", module("depends=gone"))
    with pytest.raises(KvmkitError, match="a needs gone"):
        modules.closure(["a"])


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_module_is_refused_in_one_line(garbage: bytes, at: int, value: int) -> None:
    damaged = bytearray(module("depends=base"))
    if at < len(damaged):
        damaged[at] = value
    for data in (garbage, b"\x7fELF\x02\x01" + garbage, bytes(damaged)):
        said = "some.ko: "
        try:
            modinfo(data, "some.ko")
        except KvmkitError as error:
            said = str(error)
        assert said.startswith("some.ko: ")
