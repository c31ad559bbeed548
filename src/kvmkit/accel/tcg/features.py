"""What the software CPU can do, as CPUID tells it, and where Unicorn keeps each word of that.

Unicorn translates by these words, so a feature that a model leaves out raises #UD, as it would on such a processor.
"""

from __future__ import annotations

from kvmkit.accel.cpuid import Table, has
from kvmkit.accel.features import Word, masks

EAX, EBX, ECX, EDX = range(4)

WORDS: dict[Word, int] = {
    (1, None, EDX): 0,
    (1, None, ECX): 1,
    (7, 0, EBX): 2,
    (7, 0, ECX): 3,
    (0x80000001, None, EDX): 6,
    (0x80000001, None, ECX): 7,
    (0x80000007, None, EDX): 8,
    (0x8000000A, None, EDX): 18,
    (0xD, 1, EAX): 19,
    (6, None, EAX): 20,
    (0xD, 0, EAX): 21,
}
"""The place of each CPUID word in CPUX86State.features."""

WORD_COUNT = 34

# What Unicorn implements (its TCG_..._FEATURES), without what is in its list and not in its translator: AVX, MPX.
# 3DNow!, LA57, MONITOR and ERMS are left out because guests do better without them: nobody uses the first, every page
# walk is a level longer with the second, an idle guest with the third would never sleep, and with the last kernels
# copy and clear by single bytes, which takes Unicorn eight times as long as by words.
TRANSLATED = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
    "sse3 pclmulqdq ssse3 cx16 sse4.1 sse4.2 movbe popcnt aes xsave rdrand "
    "fsgsbase bmi1 smep bmi2 adx smap clflushopt clwb pku "
    "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm lahf-lm svm cr8legacy abm sse4a "
    "xsaveopt xgetbv1 arat invtsc"
)

# What the machine around it adds.
MACHINE = "x2apic tsc-deadline hypervisor kvm-nopiodelay kvmclock2 kvmclock-stable-bit"

VENDOR = b"AuthenticAMD"  # whose instructions Unicorn's are; kernels also spare it Intel's Meltdown work
SIGNATURE = 0x00800F12  # family 23, model 1
BRAND = "kvmkit software CPU"
LEVEL = 0xD
EXTENDED_LEVEL = 0x8000000A
STATE_X87_SSE_PKRU = 3 | 1 << 9
NESTED_PAGING = 1

LEAVES: list[tuple[int, int | None]] = [
    (0, None), (1, None), (6, None), (7, 0), (0xB, 0), (0xD, 0), (0xD, 1), (0xD, 2), (0xD, 9),
    *((leaf, None) for leaf in range(0x80000000, 0x80000009)), (0x8000000A, None),
]  # fmt: skip
"""The leaves whose contents are Unicorn's own, to be asked for once its words are set."""


def all_words() -> dict[int, int]:
    """Unicorn's feature words with everything it can do."""
    words = {WORDS[word]: bits for word, bits in masks(TRANSLATED).items() if word in WORDS}
    words[WORDS[0xD, 0, EAX]] = STATE_X87_SSE_PKRU
    words[WORDS[0x8000000A, None, EDX]] = NESTED_PAGING
    return words


def with_machine(table: Table) -> Table:
    """Unicorn's leaves with those features that the machine has: x2APIC, the deadline timer, kvm-clock."""
    full = dict(table)
    b, c, d = (int.from_bytes(part, "little") for part in (b"KVMK", b"VMKV", b"M\0\0\0"))
    full[0x40000000, None] = (0x40000001, b, c, d)
    full.setdefault((0x40000001, None), (0, 0, 0, 0))
    for (leaf, subleaf, register), bits in masks(MACHINE).items():
        values = list(full[leaf, subleaf])
        values[register] |= bits
        full[leaf, subleaf] = (values[0], values[1], values[2], values[3])
    return full


def words_of(table: Table) -> dict[int, int]:
    """Unicorn's feature words for what `table` shows."""
    return {index: table.get(word[:2], (0, 0, 0, 0))[word[2]] for word, index in WORDS.items()}


def supported() -> Table:
    """What a guest of this engine can be shown, told without making one: the features, by their words."""
    b, c, d = (int.from_bytes(VENDOR[at : at + 4], "little") for at in (0, 8, 4))
    table: Table = dict.fromkeys(LEAVES, (0, 0, 0, 0))
    table[0, None] = (LEVEL, b, c, d)
    table[0x80000000, None] = (EXTENDED_LEVEL, b, c, d)
    for (leaf, subleaf, register), bits in masks(TRANSLATED).items():
        values = list(table.get((leaf, subleaf), (0, 0, 0, 0)))
        values[register] |= bits
        table[leaf, subleaf] = (values[0], values[1], values[2], values[3])
    return with_machine(table)


CR4_ALWAYS = 0x7FF  # VME to OSXMMEXCPT: every 64-bit processor has these, whatever CPUID is made to show
CR4_FEATURES = {11: "umip", 12: "la57", 16: "fsgsbase", 17: "pcid", 18: "xsave", 20: "smep", 21: "smap", 22: "pku"}


def cr4_bits(table: Table) -> int:
    """The bits of CR4 that are not reserved on a CPU that shows `table`."""
    return CR4_ALWAYS | sum(1 << bit for bit, name in CR4_FEATURES.items() if has(table, name))
