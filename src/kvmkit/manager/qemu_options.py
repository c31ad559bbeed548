"""The words of QEMU's command line: options and their arguments, `key=value,...` lists, and what we don't have."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from kvmkit.errors import BadInput

# Options we translate, and whether each takes an argument.
FLAGS = frozenset(
    "enable-kvm mem-prealloc nographic snapshot daemonize nodefaults no-user-config nodefconfig no-reboot".split()
)
ARGUMENTS = frozenset(
    "accel machine M cpu smp m mem-path hda hdb hdc hdd cdrom drive blockdev chardev device netdev nic kernel initrd"
    " append bios pflash serial vnc display boot name object numa pidfile uuid rtc vga global".split()
)

# What QEMU has and we don't: with an argument or without, and the nearest that we do.
OTHER_FLAGS: dict[str, str] = {
    "S": "a machine starts at once",
    "s": "kvmkit has no gdb server",
    "usb": "virtio devices need no USB",
    "full-screen": "use -display none and -serial stdio",
    "no-acpi": "the machine is described by ACPI",
    "no-hpet": "our machine has no HPET: leave it away",
    "no-shutdown": "a machine ends when its guest powers off",
    "no-fd-bootchk": "leave it away",
    "win2k-hack": "leave it away",
    "only-migratable": "leave it away",
    "preconfig": "a machine starts at once",
    "singlestep": "leave it away",
    "enable-fips": "leave it away",
    "xen-attach": "Xen is another hypervisor",
}
OTHER_ARGUMENTS: dict[str, str] = {
    "net": "use -nic user, or -netdev and -device virtio-net-pci",
    "redir": "use -nic user,hostfwd=...",
    "virtfs": "there is no 9P file system; a virtiofsd's: -chardev socket and -device vhost-user-fs-pci",
    "fsdev": "there is no 9P file system; a virtiofsd's: -chardev socket and -device vhost-user-fs-pci",
    "parallel": "there is no parallel port; use -serial",
    "monitor": "there is no monitor; leave it away, or -monitor none",
    "qmp": "there is no QMP server",
    "qmp-pretty": "there is no QMP server",
    "mon": "there is no monitor",
    "gdb": "kvmkit has no gdb server",
    "spice": "there is no display; the serial console is by -nographic",
    "sandbox": "leave it away",
    "runas": "start kvmkit as that user",
    "chroot": "leave it away",
    "audio": "there is no sound",
    "audiodev": "there is no sound",
    "soundhw": "there is no sound",
    "usbdevice": "there is no USB; leave it away",
    "watchdog": "there is no watchdog",
    "watchdog-action": "there is no watchdog",
    "smbios": "the machine's SMBIOS tables can't be changed",
    "acpitable": "the machine's ACPI tables can't be changed",
    "fw_cfg": "hand the guest data on its kernel command line",
    "dtb": "an x86 machine has no device tree",
    "tpmdev": "there is no TPM",
    "incoming": "there is no live migration",
    "loadvm": "QEMU's snapshots inside qcow2 are not read",
    "icount": "leave it away",
    "set": "say it at the device itself",
    "readconfig": "write the options on the command line",
    "writeconfig": "leave it away",
    "add-fd": "name the file",
    "mtdblock": "use -drive file=PATH,if=virtio",
    "sd": "use -drive file=PATH,if=virtio",
    "fda": "there is no floppy drive",
    "fdb": "there is no floppy drive",
    "k": "leave it away",
    "g": "leave it away",
    "L": "name the firmware with -bios or -drive if=pflash",
    "trace": "leave it away",
    "d": "leave it away",
    "D": "leave it away",
    "debugcon": "use -serial",
    "overcommit": "use -mem-prealloc to have memory at the start",
    "action": "use -no-reboot to end at a reset",
    "msg": "leave it away",
    "plugin": "leave it away",
    "compat": "leave it away",
    "option-rom": "leave it away",
    "iscsi": "use qemu-storage-daemon",
    "semihosting-config": "an x86 machine has none",
    "tb-size": "leave it away",
    "prom-env": "an x86 machine has none",
    "seed": "leave it away",
    "perfmap": "leave it away",
}


def refuse(what: str, nearest: str) -> BadInput:
    return BadInput(f"qemu {what}: kvmkit does not have it; {nearest}")


def split_options(words: list[str]) -> Iterator[tuple[str, str]]:
    """(option without its dashes, argument or '') of each; ('', path) for a bare disk image."""
    waiting = iter(words)
    for word in waiting:
        if "\0" in word:
            raise BadInput("qemu: an argument holds a null byte")
        if not word.startswith("-") or word == "-":
            yield "", word
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in FLAGS:
            yield name, ""
        elif name in ARGUMENTS or name in OTHER_ARGUMENTS:
            argument = next(waiting, None)
            if argument is None:
                raise BadInput(f"qemu -{name}: needs an argument")
            if name == "monitor" and argument == "none":
                continue
            if name in OTHER_ARGUMENTS:
                raise refuse(f"-{name}", OTHER_ARGUMENTS[name])
            yield name, argument
        elif name in OTHER_FLAGS:
            raise refuse(f"-{name}", OTHER_FLAGS[name])
        else:
            close = get_close_matches(name, FLAGS | ARGUMENTS, 1)
            raise BadInput(f"qemu {word}: no such option{f'; did you mean -{close[0]}?' if close else ''}")


def split_commas(text: str) -> list[str]:
    """Split at commas; two commas are one that belongs to the value."""
    parts = [""]
    index = 0
    while index < len(text):
        if text.startswith(",,", index):
            parts[-1] += ","
            index += 2
        elif text[index] == ",":
            parts.append("")
            index += 1
        else:
            parts[-1] += text[index]
            index += 1
    return parts


class Pairs:
    """The `key=value,...` of one option. Each key is taken once; `finish` refuses what nobody took."""

    def __init__(self, option: str, text: str, first: str = "", implied_on: bool = True) -> None:
        """`first` is the key that the first word has when it stands without one."""
        self.option = option
        self.values: dict[str, list[str]] = {}
        for index, part in enumerate(split_commas(text)):
            key, equals, value = part.partition("=")
            if not equals and index == 0 and first:
                key, value = first, part
            elif not equals:
                if not key or not implied_on:
                    raise BadInput(f"qemu -{option} {text}: {part!r} is no key=value")
                value = "off" if key.startswith("no") and key[2:] in ("readonly", "wait", "delay") else "on"
                key = key[2:] if value == "off" else key
            self.values.setdefault(key, []).append(value)

    def all(self, key: str) -> list[str]:
        return self.values.pop(key, [])

    def get(self, key: str, default: str = "") -> str:
        """The last one given, as in QEMU."""
        found = self.values.pop(key, [])
        return found[-1] if found else default

    def need(self, key: str) -> str:
        value = self.get(key)
        if not value:
            raise BadInput(f"qemu -{self.option}: needs {key}=")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value in ("on", "yes", "true", "y", "1"):
            return True
        if value in ("off", "no", "false", "n", "0"):
            return False
        if value == "":
            return default
        raise BadInput(f"qemu -{self.option}: {key}={value} is neither on nor off")

    def number(self, key: str, lowest: int = 0, highest: int = 1 << 32) -> int | None:
        value = self.get(key)
        if value == "":
            return None
        if not value.isascii() or not value.isdigit() or not lowest <= int(value[:20]) <= highest:
            raise BadInput(f"qemu -{self.option}: {key}={value} is not a number from {lowest} to {highest}")
        return int(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str = "") -> str:
        value = self.get(key, default)
        if value not in choices:
            raise BadInput(f"qemu -{self.option}: {key}={value}: kvmkit knows {', '.join(c for c in choices if c)}")
        return value

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing a guest or a user could see here."""
        for key in keys:
            self.values.pop(key, None)

    def finish(self) -> None:
        for key, values in self.values.items():
            raise BadInput(f"qemu -{self.option}: kvmkit does not have {key}={values[-1]}; leave it away")
