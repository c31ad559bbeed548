"""CPU models of the software CPU: what CPUID says and, since Unicorn translates by the same words, what works."""

from __future__ import annotations

from typing import NamedTuple

from kvmkit.errors import BadInput

# Unicorn's feature words, by their place in CPUX86State.features.
EDX_1, ECX_1, EBX_7, ECX_7, EDX_80000001, ECX_80000001, SVM, XSAVE, EAX_6, XSAVE_STATE = 0, 1, 2, 3, 6, 7, 18, 19, 20, 21
WORDS = 34


class Model(NamedTuple):
    """`words` maps a feature word to its bits, `signature` is EAX of leaf 1; unnamed words are zero."""

    vendor: bytes
    signature: int
    name: str
    words: dict[int, int]


# fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2
BASE_EDX = 0x078BFBFD & ~(1 << 1)
# syscall nx lm (and the bits AMD repeats from leaf 1)
BASE_EXTENDED_EDX = 0x20100800
V2_ECX = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23  # sse3 ssse3 cx16 sse4.1 sse4.2 popcnt
MAX_ECX = V2_ECX | 1 << 1 | 1 << 3 | 1 << 22 | 1 << 25 | 1 << 26 | 1 << 30  # pclmul monitor movbe aes xsave rdrand
# fsgsbase bmi1 smep bmi2 erms adx smap clflushopt clwb
MAX_EBX_7 = 1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24
# mmxext fxsr_opt 1gb-pages rdtscp
MAX_EXTENDED_EDX = BASE_EXTENDED_EDX | 1 << 22 | 1 << 26 | 1 << 27

MODELS = {
    "x86-64-v2": Model(
        b"AuthenticAMD",
        0x00060FB1,
        "kvmkit x86-64-v2",
        {EDX_1: BASE_EDX, ECX_1: V2_ECX, EDX_80000001: BASE_EXTENDED_EDX | 1 << 27, ECX_80000001: 1},
    ),
    "max": Model(
        b"AuthenticAMD",
        0x00800F12,
        "kvmkit max",
        {
            EDX_1: BASE_EDX,
            ECX_1: MAX_ECX,
            EBX_7: MAX_EBX_7,
            ECX_7: 1 << 3 | 1 << 16,  # pku la57
            EDX_80000001: MAX_EXTENDED_EDX | (BASE_EDX & 0x0183F3FF),
            ECX_80000001: 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6,  # lahf_lm svm cr8_legacy abm sse4a
            SVM: 1,  # nested paging
            XSAVE: 1 | 1 << 2,  # xsaveopt xgetbv1
            EAX_6: 1 << 2,  # arat
            XSAVE_STATE: 3 | 1 << 9,  # x87, sse, pkru
        },
    ),
}


def find(name: str) -> Model:
    """The model of that name; `host` is `max`, since there is no host processor in the way. Raises BadInput."""
    try:
        return MODELS["max" if name == "host" else name]
    except KeyError:
        known = ", ".join(["host", *sorted(MODELS)])
        raise BadInput(f"--cpu {name}: the software CPU has no such model; it has {known}") from None
