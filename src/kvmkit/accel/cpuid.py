"""CPU models: what CPUID shows the guest, from what an engine supports.

A CPUID table here is {(leaf, subleaf or None where the leaf has none): (eax, ebx, ecx, edx)}. `select` makes the
one that all vCPUs of a VM share, `for_vcpu` adds what tells them apart. Both engines use both.
"""

from __future__ import annotations

from msgspec import Struct

from kvmkit.accel import models
from kvmkit.accel.features import FEATURES, Word, canonical, masks
from kvmkit.errors import BadInput

Table = dict[tuple[int, int | None], tuple[int, int, int, int]]

EAX, EBX, ECX, EDX = range(4)


class Baseline(Struct, frozen=True):
    """A model with the same face on every host of a vendor, so that a snapshot can travel between them."""

    name: str
    description: str

    @property
    def features(self) -> str:
        """All of them: the processor's and the machine's."""
        own = models.LEVELS[self.name][1] if self.name in models.LEVELS else " ".join(models.features(self.name))
        return f"{own} {models.COMMON}"

    @property
    def brand(self) -> str:
        return f"kvmkit {self.name} CPU"

    def signature(self, amd: bool) -> int:
        """Leaf 1 eax: family, model and stepping, in the encoding of that leaf."""
        if self.name in models.NAMED:
            return models.signature(self.name)
        # The numbers of QEMU's qemu64 (family 15, model 107) and Nehalem (6, 26): old enough that no guest expects
        # a feature by them, and kernels know them well.
        return 0x00060FB1 if amd else 0x000106A3


PHYSICAL_BITS = 40
"""Of every baseline's addresses, or the host's if they are fewer."""

MODELS: dict[str, str | Baseline] = {
    "host": "everything this host's processor and the engine have",
    "max": "everything the engine has (on `kvm` the same as host)",
    **{name: Baseline(name, description) for name, (description, _) in models.LEVELS.items()},
    **{name: Baseline(name, named.description) for name, named in models.NAMED.items()},
}

DEFAULT_BASELINE = "x86-64-v2"

# Bits that stand in two words on AMD: 0x80000001 edx repeats these of leaf 1 edx.
_REPEATED = 0x0183F3FF
_AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")

# Leaves that describe the host rather than what a guest may use, or a topology that is not the guest's.
_DROPPED = {0x80000026, 0x8000001F, 0x80000025}


class Selection(Struct, frozen=True):
    """A parsed `--cpu`: a model's name (not an alias), and features to add to it and to take away.

    `nested`: the processor's own extension, vmx or svm, is to be there, or not to be; None leaves it to the model."""

    model: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    nested: bool | None = None


def parse(text: str) -> Selection:
    """Parse `MODEL[,+FEATURE][,-FEATURE]...`. Raises BadInput, with what there is, for an unknown name.

    `+nested` and `-nested` stand for vmx or svm, whichever the processor has.
    """
    name, *changes = [part.strip() for part in text.split(",")]
    model = models.ALIASES.get(name, name)
    if model not in MODELS:
        raise BadInput(f"--cpu {text}: no CPU model {name!r}{_similar(name, [*MODELS, *models.ALIASES], _SOME)}")
    wanted: dict[str, bool] = {}
    nested: bool | None = None
    for change in changes:
        if change[:1] not in ("+", "-") or not change[1:]:
            raise BadInput(f"--cpu {text}: {change!r} is neither +FEATURE nor -FEATURE")
        if change[1:] == "nested":
            nested = change[0] == "+"
            continue
        feature = canonical(change[1:])
        if feature is None:
            raise BadInput(f"--cpu {text}: no CPU feature {change[1:]!r}{_similar(change[1:].lower(), list(FEATURES))}")
        wanted[feature] = change[0] == "+"
    return Selection(
        model,
        tuple(name for name, on in wanted.items() if on),
        tuple(name for name, on in wanted.items() if not on),
        nested,
    )


_SOME = "; there are host, max, x86-64-v1 to -v4 and QEMU's names: kvmkit cpu list"


def _similar(name: str, known: list[str], otherwise: str = "") -> str:
    from difflib import get_close_matches  # only on the way to an error

    close = get_close_matches(name, known, 3, 0.7)
    return f"; did you mean {', '.join(close)}?" if close else otherwise


def _get(table: Table, word: Word) -> int:
    return table.get(word[:2], (0, 0, 0, 0))[word[2]]


def _put(table: Table, word: Word, value: int) -> None:
    registers = list(table.get(word[:2], (0, 0, 0, 0)))
    registers[word[2]] = value & 0xFFFFFFFF
    table[word[:2]] = (registers[0], registers[1], registers[2], registers[3])


def has(table: Table, name: str) -> bool:
    """Whether the table shows the feature of this name (of FEATURES)."""
    word, bit = FEATURES[name]
    return bool(_get(table, word) >> bit & 1)


def vendor(table: Table) -> bytes:
    """The 12 bytes of leaf 0."""
    _, ebx, ecx, edx = table.get((0, None), (0, 0, 0, 0))
    return b"".join(register.to_bytes(4, "little") for register in (ebx, edx, ecx))


def with_engine(supported: Table, *, deadline: bool) -> Table:
    """Add what KVM leaves to its user: that there is a hypervisor, and the LAPIC's TSC deadline (a capability)."""
    table = dict(supported)
    for name, on in (("hypervisor", True), ("tsc-deadline", deadline)):
        word, bit = FEATURES[name]
        value = _get(table, word)
        _put(table, word, value | 1 << bit if on else value & ~(1 << bit))
    return table


def select(text: str, supported: Table) -> Table:
    """The CPUID table of `--cpu text` on an engine that supports `supported`.

    A model's features that the engine lacks are left out; one asked for with `+` is not: BadInput.
    """
    selection = parse(text)
    model = MODELS[selection.model]
    add, remove = selection.add, selection.remove
    if selection.nested is False:
        remove += models.NESTING
    elif selection.nested:
        add += (_extension(text, supported),)
    table = _baseline(model, supported, add) if isinstance(model, Baseline) else _everything(supported)
    for name in add:
        if not has(supported, name):
            raise BadInput(f"--cpu {text}: neither this processor nor the engine has {name}")
        if (FEATURES[name][0][:2]) not in table:
            raise BadInput(f"--cpu {text}: model {selection.model} has no leaf {FEATURES[name][0][0]:#x} for {name}")
        word, bit = FEATURES[name]
        _put(table, word, _get(table, word) | 1 << bit)
    for name in remove:
        word, bit = FEATURES[name]
        _put(table, word, _get(table, word) & ~(1 << bit))
    _nesting_leaf(table, supported)
    _repeat(table)
    return table


def _extension(text: str, supported: Table) -> str:
    """vmx or svm, whichever the engine can give."""
    for name in models.NESTING:
        if has(supported, name):
            return name
    mend = "on a host with VT-x or AMD-V: kvmkit host nested enable"
    raise BadInput(f"--cpu {text}: guests can't run VMs of their own here (no vmx, no svm); {mend}")


def _nesting_leaf(table: Table, supported: Table) -> None:
    """Leaf 0x8000000A describes svm, and is there with it."""
    leaf = (0x8000000A, None)
    if not has(table, "svm"):
        table.pop(leaf, None)
    elif leaf not in table and leaf in supported:
        table[leaf] = supported[leaf]
        _put(table, (0x80000000, None, EAX), max(_get(table, (0x80000000, None, EAX)), leaf[0]))


def missing(text: str, supported: Table) -> list[str]:
    """Features of the model in `text` that the engine lacks, for a warning."""
    model = MODELS[parse(text).model]
    if not isinstance(model, Baseline):
        return []
    wanted = [name for name in model.features.split() if name not in models.COMMON.split()]
    return [name for name in wanted if not has(supported, name)]


def _everything(supported: Table) -> Table:
    table = {key: registers for key, registers in supported.items() if key[0] not in _DROPPED}
    if not any(_get(table, (leaf, None, register)) for leaf in (0x80000002,) for register in range(4)):
        _set_brand(table, "kvmkit host CPU")  # KVM leaves the brand to us
    return table


def _set_brand(table: Table, brand: str) -> None:
    text = brand.encode().ljust(48, b"\0")
    for i in range(3):
        words = [int.from_bytes(text[16 * i + 4 * j :][:4], "little") for j in range(4)]
        table[(0x80000002 + i, None)] = (words[0], words[1], words[2], words[3])


def _baseline(model: Baseline, supported: Table, add: tuple[str, ...]) -> Table:
    amd = vendor(supported) in _AMD_VENDORS
    _, *name = supported.get((0, None), (0, 0, 0, 0))
    table: Table = {
        (0, None): (0xD, name[0], name[1], name[2]),
        (1, None): (model.signature(amd), 8 << 8, 0, 0),  # CLFLUSH: 8 * 8 bytes
        (6, None): (0, 0, 0, 0),
        (7, 0): (0, 0, 0, 0),
        (0xB, 0): (0, 0, 0, 0),
        (0xD, 0): (0, 0, 0, 0),
        (0xD, 1): (0, 0, 0, 0),
        (0x80000000, None): (0x80000008, name[0], name[1], name[2]),
        (0x80000001, None): (0, 0, 0, 0),
        (0x80000007, None): (0, 0, 0, 0),
        (0x80000008, None): (0, 0, 0, 0),
    }
    _set_brand(table, model.brand)
    host_bits = supported.get((0x80000008, None), (0, 0, 0, 0))[EAX] & 0xFF or 36
    _put(table, (0x80000008, None, EAX), 48 << 8 | min(PHYSICAL_BITS, host_bits))
    if (0x40000000, None) in supported:
        table[(0x40000000, None)] = supported[(0x40000000, None)]
        table[(0x40000001, None)] = (0, 0, 0, 0)
    for word, mask in masks(f"{model.features} {' '.join(add)}").items():
        if word[:2] not in supported:
            continue
        if word[:2] not in table:  # a leaf that only newer models have
            table[word[:2]] = (0, 0, 0, 0)
            if word[0] == 7:
                _put(table, (7, 0, EAX), max(_get(table, (7, 0, EAX)), word[1] or 0))
            elif word[0] >> 28 == 8:
                _put(table, (0x80000000, None, EAX), max(_get(table, (0x80000000, None, EAX)), word[0]))
        _put(table, word, _get(supported, word) & mask)
    _caches(table, amd)
    _extended_state(table, supported)
    return table


def _caches(table: Table, amd: bool) -> None:
    """A cache to show, whatever the host's is: 64 KiB L1 of 2 ways on AMD and 8 elsewhere, 512 KiB L2 of 16."""
    if not amd:  # by leaf 4 (for_vcpu says who shares it) and, where a guest knows no leaf 4, by leaf 2
        table[(2, None)] = (0x01, 0, 0x4D, 0x2C307D)
        table[(4, 0)] = (0x121, 7 << 22 | 63, 63, 0)
        table[(4, 1)] = (0x122, 7 << 22 | 63, 63, 0)
        table[(4, 2)] = (0x143, 15 << 22 | 63, 511, 0)
        table[(4, 3)] = (0, 0, 0, 0)
        return
    table[(0x80000005, None)] = (0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140)
    table[(0x80000006, None)] = (0, 0x42004200, 0x02008140, 0)
    if has(table, "topoext"):
        table[(0x8000001D, 0)] = (0x121, 1 << 22 | 63, 511, 0)
        table[(0x8000001D, 1)] = (0x122, 1 << 22 | 63, 511, 0)
        table[(0x8000001D, 2)] = (0x143, 15 << 22 | 63, 511, 0)
        table[(0x8000001D, 3)] = (0, 0, 0, 0)
        _put(table, (0x80000000, None, EAX), max(_get(table, (0x80000000, None, EAX)), 0x8000001E))


# Which feature brings which components of the extended state (SDM volume 1, 13.1).
_STATE = {"avx": 1 << 2, "mpx": 3 << 3, "avx512f": 7 << 5, "pku": 1 << 9, "amx-tile": 3 << 17}


def _extended_state(table: Table, supported: Table) -> None:
    """Leaf 0xD: the components that the model's features need, where the host keeps them."""
    if not has(table, "xsave"):
        return
    components = 3  # x87 and SSE
    for name, bits in _STATE.items():
        components |= bits if has(table, name) else 0
    known = supported.get((0xD, 0), (0, 0, 0, 0))
    components &= known[EAX]
    size = 576  # the legacy area and the header
    for index in range(2, 32):
        if components >> index & 1 and (0xD, index) in supported:
            table[(0xD, index)] = supported[(0xD, index)]
            size = max(size, sum(supported[(0xD, index)][:2]))
    # ebx, the size of what is enabled just now, the engine keeps itself.
    table[(0xD, 0)] = (components, size, size, 0)
    if has(table, "amx-tile"):
        for leaf in (0x1D, 0x1E):
            for key in [key for key in supported if key[0] == leaf]:
                table[key] = supported[key]
                _put(table, (0, None, EAX), max(_get(table, (0, None, EAX)), leaf))


def _repeat(table: Table) -> None:
    if (0x80000001, None) in table:
        word = (0x80000001, None, EDX)
        own = _get(table, word) & ~_REPEATED
        repeated = _get(table, (1, None, EDX)) & _REPEATED if vendor(table) in _AMD_VENDORS else 0
        _put(table, word, own | repeated)


def for_vcpu(table: Table, index: int, cpus: int) -> Table:
    """The table of vCPU `index` of `cpus`: its APIC id, and one socket with a core for each vCPU, one thread a core."""
    own = dict(table)
    width = (cpus - 1).bit_length()  # bits of an APIC id that number the cores
    amd = vendor(table) in _AMD_VENDORS

    _, ebx, _, edx = own.get((1, None), (0, 0, 0, 0))
    _put(own, (1, None, EBX), ebx & 0xFF00 | (index & 0xFF) << 24 | min(cpus, 255) << 16)
    _put(own, (1, None, EDX), edx | 1 << 28 if cpus > 1 else edx & ~(1 << 28))
    for key in [key for key in own if key[0] in (4, 0x8000001D)]:
        eax = own[key][EAX]
        if eax & 0x1F:
            sharing = cpus - 1 if eax >> 5 & 7 >= 3 else 0
            cores = min(cpus - 1, 63) << 26 if key[0] == 4 else 0
            _put(own, (*key, EAX), eax & 0x3FFF | min(sharing, 0xFFF) << 14 | cores)
    for leaf in (0xB, 0x1F):
        if any(key[0] == leaf for key in own) and own.get((0, None), (0, 0, 0, 0))[EAX] >= leaf:
            own = {key: registers for key, registers in own.items() if key[0] != leaf}
            own[(leaf, 0)] = (0, 1, 0x100, index)  # level 1, threads of a core: none but itself
            own[(leaf, 1)] = (width, cpus & 0xFFFF, 0x201, index)  # level 2, cores of the socket
            own[(leaf, 2)] = (0, 0, 2, index)
    if (0x80000008, None) in own:
        ecx = _get(own, (0x80000008, None, ECX)) & ~0xF0FF
        _put(own, (0x80000008, None, ECX), ecx | width << 12 | min(cpus - 1, 0xFF) if amd else 0)
    if (0x80000001, None) in own and amd:
        ecx = _get(own, (0x80000001, None, ECX))
        _put(own, (0x80000001, None, ECX), ecx | 2 if cpus > 1 else ecx & ~2)  # CmpLegacy
    if amd and has(own, "topoext"):
        own[(0x8000001E, None)] = (index, index & 0xFF, 0, 0)  # APIC id; core id, one thread each; node 0 of 1
    return own
