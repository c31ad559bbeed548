"""CPUID feature bits by name. Names are those of QEMU and Linux where they agree, so `+x2apic` means the same.

Sources: Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E, Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

Word = tuple[int, int | None, int]
"""(leaf, subleaf or None where the leaf has none, register: 0 eax, 1 ebx, 2 ecx, 3 edx)."""

WORDS: dict[Word, str] = {
    # One name a bit from bit 0 up; "-" is a bit without a name here.
    (1, None, 3): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 - clflush - - - mmx fxsr "
    "sse sse2 - ht - - -",
    (1, None, 2): "sse3 pclmulqdq - monitor - vmx - - - ssse3 - - fma cx16 - pdcm - pcid - sse4.1 sse4.2 x2apic movbe "
    "popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    (6, None, 0): "- - arat",
    (7, 0, 1): "fsgsbase tsc-adjust - bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq rdseed adx "
    "smap avx512ifma - clflushopt clwb - avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    (7, 0, 2): "- avx512vbmi umip pku ospke waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
    "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - - pks",
    (7, 0, 3): "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsxldtrk "
    "- - - ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities "
    "core-capability ssbd",
    (7, 1, 0): "- - - - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - lkgs - amx-fp16 - avx-ifma",
    (0xD, 1, 0): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x80000001, None, 3): "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm "
    "3dnowext 3dnow",
    (0x80000001, None, 2): "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop "
    "skinit wdt - lwp fma4 tce - - - tbm topoext perfctr-core perfctr-nb - - - - - - -",
    (0x80000007, None, 3): "- - - - - - - - invtsc",
    (
        0x80000008,
        None,
        1,
    ): "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - - - - "
    "amd-ssbd virt-ssbd amd-no-ssb - amd-psfd",
    (0x80000021, None, 0): "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs",
    (0x40000001, None, 0): "kvmclock kvm-nopiodelay kvm-mmu kvmclock2 kvm-asyncpf kvm-steal-time kvm-pv-eoi "
    "kvm-pv-unhalt - kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield "
    "kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit",
}

ALIASES: dict[str, str] = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "lahf_lm": "lahf-lm",
    "tsx-ldtrk": "tsxldtrk",
    "pclmuldq": "pclmulqdq",
}
ALIASES |= {"ffxsr": "fxsr-opt", "xd": "nx", "i64": "lm"}
"""Linux's names for what has another name above. Beside these, `_` and `-` are the same."""

FEATURES: dict[str, tuple[Word, int]] = {
    name: (word, bit) for word, names in WORDS.items() for bit, name in enumerate(names.split()) if name != "-"
}
"""Where each feature's bit stands."""


def canonical(name: str) -> str | None:
    """The name under which FEATURES has this one, or None."""
    lowered = name.strip().lower()
    for form in (lowered, ALIASES.get(lowered, ""), lowered.replace("_", "-")):
        if form in FEATURES:
            return form
    return None


def masks(names: str) -> dict[Word, int]:
    """The bits of these features (names, split by spaces), by word."""
    found: dict[Word, int] = {}
    for name in names.split():
        word, bit = FEATURES[name]
        found[word] = found.get(word, 0) | 1 << bit
    return found
