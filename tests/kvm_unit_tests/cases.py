"""The tests that need no device beyond a PC's: no QEMU test device, no nested VMX or SVM, no Hyper-V."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """`file` is a .flat file's stem, `arguments` its command line, `seconds` its limit on an idle machine."""

    name: str
    file: str
    arguments: str = ""
    cpus: int = 1
    seconds: int = 30


def case(name: str, *, file: str | None = None, arguments: str = "", cpus: int = 1, seconds: int = 30) -> Case:
    return Case(name, file or name, arguments, cpus, seconds)


CASES = [
    case("access", file="access_test", seconds=45),
    case("apic", seconds=20),
    case("debug"),
    case("emulator"),
    case("eventinj"),
    case("hypercall"),
    case("idt_test", seconds=8),
    case("ioapic", seconds=8),
    case("kvmclock_test", arguments="100000"),
    case("la57"),
    case("memory"),
    case("msr"),
    case("pcid"),
    case("pks"),
    case("pku"),
    case("rdpru"),
    case("realmode"),
    case("rmap_chain", seconds=60),
    case("setjmp"),
    case("sieve", seconds=90),
    case("smap"),
    case("smptest", cpus=2),
    case("smptest3", file="smptest", cpus=3),
    case("syscall"),
    case("tsc"),
    case("tsc_adjust"),
    case("tsx-ctrl"),
    case("umip"),
    case("vmexit_cpuid", file="vmexit", arguments="cpuid"),
    case("vmexit_pmtimer", file="vmexit", arguments="inl_from_pmtimer"),
    case("vmexit_tscdeadline", file="vmexit", arguments="tscdeadline"),
    case("vmexit_cr8", file="vmexit", arguments="mov_to_cr8"),
    case("xsave"),
]
