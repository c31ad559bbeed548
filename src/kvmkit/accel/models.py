"""Named CPU models: QEMU's names, and the x86-64 levels. Each is told by what it has beside another.

A model says which features its processor has, and family, model and stepping. Features that belong to the machine
rather than to the processor (COMMON) every model gets; vmx and svm none, as a guest is to run VMs of its own only
where that is asked for. Sources: QEMU's "CPU models" documentation and what QEMU 7.2 and libvirt 9 answer when they
are asked to expand a model (tests/accel/test_named_models.py asks QEMU again where it is installed); the System V
psABI for the levels.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

COMMON = (
    "hypervisor x2apic tsc-deadline arat "
    "kvmclock kvm-nopiodelay kvmclock2 kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt kvmclock-stable-bit"
)

NESTING = ("vmx", "svm")

# What every 64-bit processor has, and the psABI takes for granted: level 1.
_LEVEL_1 = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx lm"


class Named(NamedTuple):
    """`base`: the model that this one differs from by `add` and `remove`. `signature`: family, model, stepping."""

    base: str
    description: str
    add: str = ""
    remove: str = ""
    signature: tuple[int, int, int] | None = None


def _intel(base: str, what: str, model: int, stepping: int, add: str = "", remove: str = "") -> Named:
    return Named(base, what, add, remove, (6, model, stepping))


NAMED: dict[str, Named] = {
    "kvm64": Named("", "any 64-bit processor, as KVM's oldest guests know it", f"{_LEVEL_1} sse3 cx16", "", (15, 6, 1)),
    "qemu64": Named("kvm64", "any 64-bit processor: what QEMU takes when nothing is said", "lahf-lm", "", (15, 107, 1)),
    "core2duo": _intel("kvm64", "Intel Core 2 Duo, 2006", 15, 11, "vme ssse3 lahf-lm"),
    "Conroe": _intel("kvm64", "Intel Core 2 (Conroe), 2006", 15, 3, "vme ssse3 lahf-lm", "cx16"),
    "Penryn": _intel("Conroe", "Intel Core 2 (Penryn), 2007", 23, 3, "cx16 sse4.1"),
    "Nehalem": _intel("Penryn", "Intel Xeon 5500 (Nehalem), 2009", 26, 3, "sse4.2 popcnt"),
    "Westmere": _intel("Nehalem", "Intel Xeon 5600 (Westmere), 2010", 44, 1, "pclmulqdq aes"),
    "SandyBridge": _intel("Westmere", "Intel Xeon E5 (Sandy Bridge), 2012", 42, 1, "xsave avx xsaveopt rdtscp"),
    "IvyBridge": _intel("SandyBridge", "Intel Xeon E5 v2 (Ivy Bridge), 2013", 58, 9, "f16c rdrand fsgsbase smep erms"),
    "Haswell": _intel(
        "IvyBridge", "Intel Xeon E5 v3 (Haswell), 2014", 60, 4, "fma pcid movbe bmi1 hle avx2 bmi2 invpcid rtm abm"
    ),
    "Broadwell": _intel("Haswell", "Intel Xeon E5 v4 (Broadwell), 2016", 61, 2, "rdseed adx smap 3dnowprefetch"),
    "Skylake-Client": _intel("Broadwell", "Intel Core 6th generation (Skylake), 2015", 94, 3, "xsavec xgetbv1"),
    "Skylake-Server": _intel(
        "Skylake-Client",
        "Intel Xeon Scalable (Skylake), 2017",
        85,
        4,
        "avx512f avx512dq clflushopt clwb avx512cd avx512bw avx512vl pku pdpe1gb",
    ),
    "Cascadelake-Server": _intel(
        "Skylake-Server", "Intel Xeon Scalable 2nd generation (Cascade Lake), 2019", 85, 6, "avx512vnni spec-ctrl ssbd"
    ),
    "Cooperlake": _intel(
        "Cascadelake-Server",
        "Intel Xeon Scalable 3rd generation (Cooper Lake), 2020",
        85,
        10,
        "stibp arch-capabilities avx512-bf16",
    ),
    "Icelake-Server": _intel(
        "Cascadelake-Server",
        "Intel Xeon Scalable 3rd generation (Ice Lake), 2021",
        134,
        0,
        "avx512vbmi umip avx512vbmi2 gfni vaes vpclmulqdq avx512bitalg avx512-vpopcntdq la57 wbnoinvd",
    ),
    "SapphireRapids": _intel(
        "Icelake-Server-v6",
        "Intel Xeon Scalable 4th generation (Sapphire Rapids), 2023",
        143,
        4,
        "hle rtm bus-lock-detect serialize tsxldtrk amx-bf16 avx512-fp16 amx-tile amx-int8 avx-vnni avx512-bf16 "
        "fzrm fsrs fsrc xfd",
    ),
    "Denverton": _intel(
        "Westmere",
        "Intel Atom C3000 (Denverton), 2017",
        95,
        1,
        "movbe xsave rdrand fsgsbase smep erms mpx rdseed smap clflushopt sha-ni spec-ctrl arch-capabilities ssbd "
        "xsaveopt xsavec xgetbv1 pdpe1gb rdtscp 3dnowprefetch",
    ),
    "Snowridge": _intel(
        "Denverton",
        "Intel Atom P5000 (Snow Ridge), 2020",
        134,
        1,
        "clwb umip gfni cldemote movdiri movdir64b core-capability",
    ),
    "phenom": Named(
        "kvm64",
        "AMD Phenom, 2007",
        "vme popcnt mmxext fxsr-opt pdpe1gb rdtscp 3dnowext 3dnow lahf-lm abm sse4a",
        "",
        (16, 2, 3),
    ),
    "Opteron_G1": Named("kvm64", "AMD Opteron 240, 2003", "vme", "cx16", (15, 6, 1)),
    "Opteron_G2": Named("Opteron_G1", "AMD Opteron 22xx, 2006", "cx16 lahf-lm", "", (15, 6, 1)),
    "Opteron_G3": Named("Opteron_G2", "AMD Opteron 23xx, 2009", "popcnt rdtscp abm sse4a misalignsse", "", (16, 2, 3)),
    "Opteron_G4": Named(
        "Opteron_G3",
        "AMD Opteron 62xx, 2011",
        "pclmulqdq ssse3 sse4.1 sse4.2 aes xsave avx pdpe1gb 3dnowprefetch xop fma4",
        "",
        (21, 1, 2),
    ),
    "Opteron_G5": Named("Opteron_G4", "AMD Opteron 63xx, 2012", "fma f16c tbm", "", (21, 2, 0)),
    "EPYC": Named(
        "Opteron_G5",
        "AMD EPYC 7001 (Naples), 2017",
        "movbe rdrand fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni xsaveopt xsavec xgetbv1 mmxext "
        "fxsr-opt cr8legacy osvw topoext",
        "xop fma4 tbm",
        (23, 1, 2),
    ),
    "Dhyana": Named("EPYC", "Hygon Dhyana, 2018", "ibpb", "pclmulqdq aes sha-ni", (24, 0, 1)),
    "EPYC-Rome": Named(
        "EPYC",
        "AMD EPYC 7002 (Rome), 2019",
        "clwb umip rdpid xsaves perfctr-core clzero xsaveerptr wbnoinvd ibpb amd-stibp",
        "",
        (23, 49, 0),
    ),
    "EPYC-Milan": Named(
        "EPYC-Rome", "AMD EPYC 7003 (Milan), 2021", "pcid erms invpcid pku fsrm ibrs amd-ssbd", "", (25, 1, 1)
    ),
    "EPYC-Genoa": Named(
        "EPYC-Milan",
        "AMD EPYC 9004 (Genoa), 2022",
        "avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512vbmi2 gfni vaes vpclmulqdq avx512vnni "
        "avx512bitalg avx512-vpopcntdq la57 avx512-bf16 stibp-always-on amd-psfd no-nested-data-bp "
        "lfence-always-serializing null-sel-clr-base auto-ibrs",
        "",
        (25, 17, 0),
    ),
}

# Later versions of a model: fixes for TSX (without it) and for speculation (with microcode's controls), and what
# KVM learned to offer since. Each differs from the one before it.
_VERSIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "Nehalem": (("spec-ctrl", ""),),
    "Westmere": (("spec-ctrl", ""),),
    "SandyBridge": (("spec-ctrl", ""),),
    "IvyBridge": (("spec-ctrl", ""),),
    "Haswell": (("", "hle rtm"), ("hle rtm spec-ctrl", ""), ("", "hle rtm")),
    "Broadwell": (("", "hle rtm"), ("hle rtm spec-ctrl", ""), ("", "hle rtm")),
    "Skylake-Client": (("spec-ctrl", ""), ("", "hle rtm"), ("xsaves", "")),
    "Skylake-Server": (("spec-ctrl", "clflushopt"), ("", "hle rtm"), ("", ""), ("xsaves", "")),
    "Cascadelake-Server": (("arch-capabilities", ""), ("", "hle rtm"), ("", ""), ("xsaves", "")),
    "Cooperlake": (("xsaves", ""),),
    "Icelake-Server": (
        ("", "hle rtm"),
        ("arch-capabilities", ""),
        ("avx512ifma sha-ni rdpid fsrm", ""),
        ("xsaves", ""),
        ("", ""),
    ),
    "Denverton": (("", "mpx"), ("xsaves", "")),
    "Snowridge": (("", "mpx"), ("xsaves", ""), ("", "core-capability")),
    "EPYC": (("ibpb", ""), ("xsaves perfctr-core clzero xsaveerptr", "")),
    "Dhyana": (("xsaves", ""),),
    "EPYC-Rome": (("ibrs amd-ssbd", ""),),
}
_SIGNATURES = {
    "Haswell-v2": (6, 60, 1),
    "Haswell-v3": (6, 60, 4),
    "Haswell-v4": (6, 60, 1),
    "Icelake-Server-v4": (6, 106, 0),
}

ALIASES: dict[str, str] = {
    **{f"{name}-IBRS": f"{name}-v2" for name in ("Nehalem", "Westmere", "SandyBridge", "IvyBridge")},
    **{f"{name}-noTSX": f"{name}-v2" for name in ("Haswell", "Broadwell", "Icelake-Server")},
    **{f"{name}-IBRS": f"{name}-v3" for name in ("Haswell", "Broadwell")},
    **{f"{name}-noTSX-IBRS": f"{name}-v4" for name in ("Haswell", "Broadwell")},
    **{f"{name}-IBRS": f"{name}-v2" for name in ("Skylake-Client", "Skylake-Server")},
    **{f"{name}-noTSX-IBRS": f"{name}-v3" for name in ("Skylake-Client", "Skylake-Server")},
    "Cascadelake-Server-noTSX": "Cascadelake-Server-v3",
    "EPYC-IBPB": "EPYC-v2",
    "kvm64-v1": "kvm64",
}
"""Other names of models below: libvirt's, and QEMU's before it numbered its versions."""


def _add_versions() -> None:
    for name in list(NAMED):
        ALIASES[f"{name}-v1"] = name
        previous = name
        for number, (add, remove) in enumerate(_VERSIONS.get(name, ()), 2):
            this = f"{name}-v{number}"
            text = f"the same, QEMU's version {number}"
            NAMED[this] = Named(previous, text, add, remove, _SIGNATURES.get(this))
            previous = this


_add_versions()


@functools.cache
def features(name: str) -> tuple[str, ...]:
    """The processor features of a model of NAMED, without COMMON."""
    model = NAMED[name]
    base = features(model.base) if model.base else ()
    dropped = model.remove.split()
    kept = [feature for feature in base if feature not in dropped]
    return (*kept, *(feature for feature in model.add.split() if feature not in kept))


def signature(name: str) -> int:
    """Leaf 1 eax: family, model and stepping, in the encoding of that leaf."""
    found = NAMED[name].signature
    if found is None:
        return signature(NAMED[name].base)
    family, model, stepping = found
    extended = max(family - 15, 0)
    return extended << 20 | (model >> 4) << 16 | min(family, 15) << 8 | (model & 15) << 4 | stepping


LEVELS: dict[str, tuple[str, str]] = {
    "x86-64-v1": ("the x86-64-v1 level: every 64-bit processor", f"vme {_LEVEL_1}"),
    "x86-64-v2": (
        "the x86-64-v2 level: any server since 2009; snapshots travel between hosts of one vendor",
        f"vme {_LEVEL_1} sse3 ssse3 cx16 sse4.1 sse4.2 popcnt lahf-lm",
    ),
    "x86-64-v3": (
        "the x86-64-v3 level: Intel since Haswell (2013), AMD since EPYC (2017)",
        f"vme {_LEVEL_1} sse3 ssse3 cx16 sse4.1 sse4.2 popcnt lahf-lm "
        "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xsaveopt",
    ),
    "x86-64-v4": (
        "the x86-64-v4 level: AVX-512, Intel Xeon since Skylake (2017), AMD since EPYC 9004 (2022)",
        f"vme {_LEVEL_1} sse3 ssse3 cx16 sse4.1 sse4.2 popcnt lahf-lm "
        "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xsaveopt avx512f avx512bw avx512cd avx512dq avx512vl",
    ),
}
"""The psABI's levels: (description, features)."""
