"""Kernel modules: which need which, and the tables by which modprobe finds them.

A module is an ELF object whose section .modinfo holds NUL-ended "key=value" strings; `depends` names the
modules whose symbols it uses, `softdep` those that should be there as well (modprobe.d(5)). The tables are
those of depmod(8) in their text form, which is what busybox's modprobe reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from kvmkit.errors import KvmkitError


def module_name(path: str) -> str:
    """The name the kernel has for a module's file: "kernel/arch/x86/kvm/kvm-amd.ko" is kvm_amd."""
    return path.rpartition("/")[2].removesuffix(".ko").replace("-", "_")


def modinfo(module: bytes, path: str = "module") -> list[tuple[str, str]]:
    """The (key, value) pairs of a module's .modinfo section, in order; keys repeat."""
    try:
        if module[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", module, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", module, 0x3A)
        sections = [struct.unpack_from("<IIQQQQ", module, table + size * i) for i in range(count)]
        names = sections[names_index][4]
        for name, _, _, _, offset, length in sections:
            end = module.index(b"\0", names + name)
            if module[names + name : end] == b".modinfo":
                pairs = module[offset : offset + length].split(b"\0")
                return [(k.decode(), v.decode()) for k, _, v in (pair.partition(b"=") for pair in pairs if pair)]
        raise ValueError("no .modinfo section")
    except (OverflowError, struct.error, ValueError, IndexError) as error:
        raise KvmkitError(f"{path}: can't be read as a kernel module: {error}") from None


class ModuleSet:
    """Modules of one kernel by name, as far as they were added: (path below the release's directory, contents)."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self._info: dict[str, list[tuple[str, str]]] = {}

    def add(self, path: str, data: bytes) -> None:
        name = module_name(path)
        self.files[name] = (path, data)
        self._info[name] = modinfo(data, path)

    def depends(self, name: str) -> list[str]:
        """Direct needs of one module, softdeps last; what is built into the kernel is left out."""
        hard: list[str] = []
        soft: list[str] = []
        for key, value in self._info[name]:
            if key == "depends":
                hard += [need.replace("-", "_") for need in value.split(",") if need]
            elif key == "softdep":
                soft += [w.replace("-", "_") for w in value.split() if not w.endswith(":")]
        for need in hard:
            if need not in self.files:
                raise KvmkitError(f"the kernel's module {name} needs {need}, which its package does not have")
        return [need for need in dict.fromkeys(hard + soft) if need in self.files]

    def closure(self, wanted: Iterable[str]) -> list[str]:
        """`wanted` (names that don't exist here are skipped: built in, or not of this kernel) and all they need."""
        found: dict[str, None] = {}
        todo = [name for name in wanted if name in self.files]
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = None
                todo += self.depends(name)
        return sorted(found)

    def tables(self, names: Iterable[str]) -> Mapping[str, str]:
        """modules.dep, modules.alias and modules.softdep for `names`, which must be closed under needs."""
        dep, alias, softdep = [], ["# Aliases extracted from modules themselves."], []
        for name in names:
            needs = [self.files[need][0] for need in self._loading_order(name)]
            dep.append(f"{self.files[name][0]}: {' '.join(needs)}".rstrip())
            for key, value in self._info[name]:
                if key == "alias":
                    alias.append(f"alias {value} {name}")
                elif key == "softdep":
                    softdep.append(f"softdep {name} {value}")
        return {f"modules.{n}": "\n".join([*lines, ""]) for n, lines in
                (("dep", dep), ("alias", alias), ("softdep", softdep))}  # fmt: skip

    def aliases(self, name: str) -> list[str]:
        """What a device calls itself that this module drives; patterns, as in modules.alias."""
        return [value for key, value in self._info[name] if key == "alias"]

    def in_order(self, name: str) -> list[str]:
        """The paths of what is to be loaded for `name`, one after another; its own is the last."""
        return [self.files[need][0] for need in [*reversed(self._loading_order(name)), name]]

    def _loading_order(self, name: str) -> list[str]:
        """What `name` needs, each before what it needs itself, as depmod lists them: modprobe loads from the end."""
        order: dict[str, None] = {}
        todo = self._hard(name)
        while todo:
            need = todo.pop(0)
            order.pop(need, None)
            order[need] = None
            todo += self._hard(need)
        return list(order)

    def _hard(self, name: str) -> list[str]:
        for key, value in self._info[name]:
            if key == "depends":
                return [need.replace("-", "_") for need in value.split(",") if need]
        return []
