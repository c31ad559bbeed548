"""What a file that is no kernel for this machine is instead, so that the refusal can say so."""

from __future__ import annotations

_ELF_MACHINES = {
    2: "SPARC",
    3: "32-bit x86",
    8: "MIPS",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "S/390",
    40: "32-bit Arm",
    62: "x86-64",
    183: "arm64",
    243: "RISC-V",
    258: "LoongArch",
}

_STARTS = (
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"\xfd7zXZ\x00", "xz data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\x04\x22\x4d\x18", "LZ4 data: unpack it first"),
    (b"\x02\x21\x4c\x18", "LZ4 data: unpack it first"),
    (b"\x89LZO", "LZO data: unpack it first"),
    (b"07070", "a cpio archive, perhaps the initrd"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"!<arch>\n", "a package or a library: give the kernel that is in it"),
    (b"#!", "a script"),
    (b"\xd0\x0d\xfe\xed", "a device tree"),
)


def elf_machine(number: int) -> str:
    """The name of an ELF file's machine (`e_machine`)."""
    return _ELF_MACHINES.get(number, f"machine {number}")


def describe(head: bytes) -> str:
    """What a file that starts with `head` seems to be."""
    if not head:
        return "it is empty"
    if head[:4] == b"\x7fELF":
        return "it is a damaged ELF file"
    if head[0x38:0x3C] == b"ARM\x64":
        return "it is a kernel for arm64, not for x86-64"
    if head[0x38:0x3C] == b"RSC\x05":
        return "it is a kernel for RISC-V, not for x86-64"
    if head[:2] == b"MZ":
        if head[4:8] == b"zimg":
            return "it is a compressed EFI kernel, which x86-64 does not use"
        return "it is an EFI or Windows program"
    for magic, meaning in _STARTS:
        if head.startswith(magic):
            return f"it is {meaning}"
    if head[257:262] == b"ustar":
        return "it is a tar archive"
    return "none of its signatures is there"
