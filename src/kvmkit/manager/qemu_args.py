"""QEMU's own command line (qemu-system-x86_64(1)) -> Description. What we don't have is refused by its name."""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from kvmkit.errors import BadInput
from kvmkit.machine.pmem import Pmem
from kvmkit.manager.description import MIB, Description, Disk, Memory, Serial
from kvmkit.manager.qemu_devices import Devices
from kvmkit.manager.qemu_limits import limits
from kvmkit.manager.qemu_options import Pairs, refuse, split_commas, split_options

Accel = Literal["auto", "kvm", "tcg"]
Board = Literal["pc", "q35", "microvm"]

SIZE_UNITS = {"": MIB, "b": 1, "k": 1 << 10, "m": MIB, "g": 1 << 30, "t": 1 << 40}
LARGEST = 1 << 52

HARMLESS_GLOBALS = frozenset(
    f"{driver}.{name}" for driver in ("ICH9-LPC", "PIIX4_PM") for name in ("disable_s3", "disable_s4")
)
"""Of what our machine does not have: sleep."""
DATA_DIRECTORIES = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/ovmf")
"""Where QEMU looks for firmware that has no path."""


def parse(words: list[str]) -> Description:
    """Translate the arguments after `qemu-system-x86_64`. Raises BadInput, in one line, for what can't be done."""
    try:
        return _Translation(words).result()
    except BadInput as error:  # one line, whatever the words hold
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(error))
        raise BadInput(line) from None


def size_of(text: str, option: str) -> int:
    """QEMU's sizes: a bare number is MiB; K, M, G, T; 1.5G."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([bkmgt]?)", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise BadInput(f"qemu -{option} {text}: is no size; write it like 1024, 512M or 2G")
    size = int(float(found[1]) * SIZE_UNITS[found[2].lower()])
    if not 0 < size <= LARGEST:
        raise BadInput(f"qemu -{option} {text}: no machine has that much memory")
    return size


def _in_data_directory(name: str) -> str:
    """The path of an image that -bios names: as it is, or where QEMU has its own."""
    if not name or os.path.dirname(name) or os.path.exists(name):
        return name
    return next((path for place in DATA_DIRECTORIES if os.path.exists(path := os.path.join(place, name))), name)


class _Translation:
    def __init__(self, words: list[str]) -> None:
        self.devices = Devices()
        self.accels: list[str] = []
        self.hotplug = ""
        self.board: Board = "pc"
        self.memory = 128 * MIB
        self.memory_path, self.preallocate = "", False
        self.backends: dict[str, Memory] = {}
        self.memory_backend = ""
        self.cpu, self.cpus, self.cpu_enforce, self.one_socket = "", 1, False, True
        self.texts: dict[str, str] = {}
        self.initrd: list[str] = []
        self.serials: list[Serial] = []
        self.waiting_serials: list[tuple[int, str]] = []  # (place in serials, the -chardev's id)
        self.display: str | None = None
        self.vnc = ""
        self.graphic, self.snapshot, self.daemonize, self.reboot = True, False, False, True
        self.secure, self.no_serial, self.defaults = False, False, True
        self.boot_order = ""
        for name, argument in split_options(words):
            handler = getattr(self, f"_{(name or 'hda').replace('-', '_')}", None)
            if handler is not None:
                handler(argument)
            elif name in ("kernel", "append", "bios", "pidfile", "uuid"):
                self.texts[name] = argument
            elif name in ("hda", "hdb", "hdc", "hdd", "cdrom", ""):
                self.devices.drive_letter(name or "hda", argument)

    # Options without more to them
    def _enable_kvm(self, _: str) -> None:
        self.accels.append("kvm")

    def _mem_prealloc(self, _: str) -> None:
        self.preallocate = True

    def _mem_path(self, argument: str) -> None:
        self.memory_path = argument

    def _nographic(self, _: str) -> None:
        self.graphic = False

    def _snapshot(self, _: str) -> None:
        self.snapshot = True

    def _daemonize(self, _: str) -> None:
        self.daemonize = True

    def _no_reboot(self, _: str) -> None:
        self.reboot = False

    def _nodefaults(self, _: str) -> None:
        self.defaults = False

    def _initrd(self, argument: str) -> None:
        self.initrd = split_commas(argument)

    # Processor, memory, board
    def _accel(self, argument: str) -> None:
        pairs = Pairs("accel", argument, "accel")
        self.accels += pairs.get("accel").split(":")
        pairs.ignore("thread", "kernel-irqchip", "tb-size", "split-wx", "one-insn-per-tb")
        pairs.finish()

    def _machine(self, argument: str) -> None:
        pairs = Pairs("machine", argument, "type")
        kind = pairs.get("type", "pc")
        for board in ("q35", "microvm", "pc"):
            if kind == board or kind.startswith(f"{board}-") or (board == "q35" and kind.startswith("pc-q35-")):
                self.board = board
                break
        else:
            raise refuse(f"-machine {kind}", "it has pc, q35 and microvm")
        if accel := pairs.get("accel"):
            self.accels += accel.split(":")
        self.memory_backend = pairs.get("memory-backend", self.memory_backend)
        for unit in (0, 1):
            if node := pairs.get(f"pflash{unit}"):
                self.devices.flash_node(unit, node)
        pairs.ignore(
            "smm",  # on by itself where there is any; whether firmware needs it is seen at its image
            "vmport",
            "dump-guest-core",
            "mem-merge",
            "kernel_irqchip",
            "kernel-irqchip",
            "graphics",
            "pit",
            "pic",
            "rtc",
            "nvdimm",
        )
        for key, unwanted, nearest in (
            ("usb", True, "virtio devices need no USB"),
            ("hpet", True, "our machine has no HPET"),
            ("acpi", False, "the machine is described by ACPI"),
        ):
            if pairs.flag(key, not unwanted) is unwanted:
                raise refuse(f"-machine {key}={'on' if unwanted else 'off'}", nearest)
        pairs.ignore("isa-serial", "x-option-roms", "auto-kernel-cmdline", "pcie")
        pairs.finish()

    _M = _machine

    def _cpu(self, argument: str) -> None:
        model, *properties = split_commas(argument)
        changes = []
        for word in properties:
            key, equals, value = word.partition("=")
            if key == "enforce":
                self.cpu_enforce = value != "off"
            if key in ("check", "enforce", "migratable", "host-cache-info", "l3-cache"):
                continue
            if key == "hv-passthrough" or key.startswith(("hv-", "hv_")):
                raise refuse(f"-cpu ...,{word}", "the guest sees KVM's own paravirtual features, not Hyper-V's")
            if equals:
                if value not in ("on", "off"):
                    raise refuse(f"-cpu ...,{word}", "features are switched by +NAME and -NAME")
                changes.append(f"{'+' if value == 'on' else '-'}{key}")
            elif key[:1] in ("+", "-") and key[1:]:
                changes.append(key)
            else:
                changes.append(f"+{key}")
        self.cpu = ",".join([model, *changes])

    def _smp(self, argument: str) -> None:
        pairs = Pairs("smp", argument, "cpus")
        shape = [pairs.number(key, 1, 4096) for key in ("sockets", "dies", "clusters", "cores", "threads")]
        cpus, most = pairs.number("cpus", 1, 4096), pairs.number("maxcpus", 1, 4096)
        pairs.finish()
        product = 1
        for count in shape:
            product *= count or 1
        told = product if any(count is not None for count in shape) else None
        self.cpus = cpus or most or told or 1
        if most is not None and most != self.cpus:
            raise refuse(f"-smp maxcpus={most}", "CPUs can't be added later; give as many as the guest is to have")
        if told is not None and told != self.cpus and not (shape.count(None) and self.cpus % told == 0):
            raise BadInput(f"qemu -smp {argument}: sockets, cores and threads make {told} CPUs, not {self.cpus}")
        self.one_socket = all((count or 1) == 1 for index, count in enumerate(shape) if index != 3)

    def _m(self, argument: str) -> None:
        pairs = Pairs("m", argument, "size")
        self.memory = size_of(pairs.need("size"), "m")
        for key in ("slots", "maxmem"):
            if value := pairs.get(key):
                self.hotplug = f"{key}={value}"  # QEMU wants them where there is an NVDIMM
        pairs.finish()

    def _object(self, argument: str) -> None:
        pairs = Pairs("object", argument, "qom-type")
        kind, id = pairs.need("qom-type"), pairs.need("id")
        if kind in ("rng-random", "rng-builtin"):
            pairs.ignore("filename")
            self.devices.rngs.add(id)
        elif kind in ("memory-backend-ram", "memory-backend-file", "memory-backend-memfd"):
            path = pairs.need("mem-path") if kind == "memory-backend-file" else ""
            self.backends[id] = Memory(
                size=size_of(pairs.need("size"), "object size"),
                path=path,
                hugepages=pairs.flag("hugetlb"),
                page=self._huge_page(pairs),
                preallocate=pairs.flag("prealloc"),
                shared=pairs.flag("share"),
            )
            if path:  # without share=on what the guest writes is lost, as with readonly=on
                lost = pairs.flag("readonly") or not self.backends[id].shared
                self.devices.files[id] = Pmem(path=path, readonly=lost)
            pairs.ignore("merge", "dump", "prealloc-threads", "discard-data", "seal", "align", "pmem", "rom")
        elif kind == "iothread":
            pass  # every device of ours has a thread of its own
        elif kind == "throttle-group":
            self.devices.throttles[id] = limits("object", pairs, "x-")
        else:
            known = "memory-backend-ram, -file and -memfd, rng-random, throttle-group and iothread"
            raise refuse(f"-object {kind}", f"it has {known}")
        pairs.finish()

    @staticmethod
    def _huge_page(pairs: Pairs) -> Literal["", "2M", "1G"]:
        text = pairs.get("hugetlbsize")
        if not text:
            return ""
        size = size_of(text, "object hugetlbsize")
        if size not in (2 * MIB, 1024 * MIB):
            raise refuse(f"-object hugetlbsize={text}", "it has 2M and 1G")
        return "2M" if size == 2 * MIB else "1G"

    def _numa(self, argument: str) -> None:
        pairs = Pairs("numa", argument, "type")
        if pairs.get("type") != "node" or self.memory_backend:
            raise refuse(f"-numa {argument}", "a guest has one NUMA node")
        self.memory_backend = pairs.need("memdev")
        pairs.ignore("nodeid", "cpus")
        pairs.finish()

    def _rtc(self, argument: str) -> None:
        pairs = Pairs("rtc", argument, "base")
        base = pairs.get("base", "utc")
        if base != "utc":
            raise refuse(f"-rtc base={base}", "the clock is in UTC")
        pairs.ignore("clock", "driftfix")
        pairs.finish()

    # Devices
    def _drive(self, argument: str) -> None:
        self.devices.drive(argument)

    def _pflash(self, argument: str) -> None:
        self.devices.flash(Disk(path=argument))

    def _global(self, argument: str) -> None:
        name, _, value = argument.partition("=")
        if name == "driver":
            pairs = Pairs("global", argument)
            name, value = f"{pairs.need('driver')}.{pairs.need('property')}", pairs.need("value")
            pairs.finish()
        if name == "cfi.pflash01.secure":  # variables that only firmware in system management mode writes
            self.secure = value in ("on", "yes", "true", "1")
        elif name not in HARMLESS_GLOBALS:
            raise refuse(f"-global {argument}", "say it at the device itself")

    def _chardev(self, argument: str) -> None:
        self.devices.chardevs.add(argument)

    def _blockdev(self, argument: str) -> None:
        self.devices.blockdev(argument)

    def _device(self, argument: str) -> None:
        self.devices.device(argument)

    def _netdev(self, argument: str) -> None:
        self.devices.netdev(argument)

    def _nic(self, argument: str) -> None:
        self.devices.nic(argument)

    def _vga(self, argument: str) -> None:
        if argument not in ("none", "virtio"):
            raise refuse(
                f"-vga {argument}", "there is no graphics card: -vga none and the serial console, by -nographic"
            )
        self.devices.graphics = argument == "virtio"

    # What the user sees of it
    def _serial(self, argument: str) -> None:
        kind, _, rest = argument.partition(":")
        if argument in ("stdio", "mon:stdio"):
            self.serials.append(Serial(kind="stdio"))
        elif argument in ("pty", "null"):
            self.serials.append(Serial(kind="pty" if argument == "pty" else "null"))
        elif argument == "none":
            self.no_serial = True
        elif kind == "chardev":
            self.waiting_serials.append((len(self.serials), rest))
            self.serials.append(Serial(kind="null"))
        elif kind in ("file", "unix") and rest:
            path, *words = rest.split(",") if kind == "unix" else [rest]
            for word in words:
                if word.partition("=")[0] not in ("server", "nowait", "wait"):
                    raise refuse(f"-serial {argument}", "a socket of ours is made with unix:PATH,server,nowait")
            self.serials.append(Serial(kind="file" if kind == "file" else "unix", path=path))
        else:
            raise refuse(f"-serial {argument}", "it has stdio, file:PATH, unix:PATH, pty, chardev:ID, null and none")

    def _vnc(self, argument: str) -> None:
        where, *words = split_commas(argument)
        if words:
            raise refuse(f"-vnc ...,{words[0]}", "give the display only, as in -vnc :0 or -vnc unix:PATH")
        if where == "none":
            return
        if where.startswith("unix:"):
            self.vnc = where
        else:
            host, colon, number = where.rpartition(":")
            if not colon or not number.isascii() or not number.isdigit() or int(number[:9]) > 59635:
                raise BadInput(f"qemu -vnc {argument}: is no display; write it like :0 or 127.0.0.1:1")
            self.vnc = f"{host or '127.0.0.1'}:{5900 + int(number)}"
        self.display = "vnc"

    def _display(self, argument: str) -> None:
        kind, _, rest = argument.partition(",")
        if kind.startswith("vnc="):
            self._vnc(argument.removeprefix("vnc="))
        elif kind == "none":
            self.display = "none"
        elif kind == "vnc":
            self._vnc(rest)
        else:
            raise refuse(
                f"-display {kind}{',' if rest else ''}{rest}", "there is no window; the serial console is by -nographic"
            )

    def _boot(self, argument: str) -> None:
        pairs = Pairs("boot", argument, "order")
        order = pairs.get("order")
        if once := pairs.get("once"):
            raise refuse(f"-boot once={once}", "use -boot order=")
        if set(order) - set("acdnp"):
            raise BadInput(f"qemu -boot {argument}: the order is letters of c (disk), d (CD-ROM) and n (network)")
        if "a" in order:
            raise refuse(f"-boot {order}", "there is no floppy drive")
        self.boot_order = order
        if pairs.flag("menu"):
            raise refuse("-boot menu=on", "say the order: -boot order=, or bootindex= at a device")
        pairs.ignore("splash", "splash-time", "reboot-timeout", "strict")
        pairs.finish()

    def _name(self, argument: str) -> None:
        pairs = Pairs("name", argument, "guest")
        self.texts["name"] = pairs.get("guest")
        pairs.ignore("process", "debug-threads")
        pairs.finish()

    def result(self) -> Description:
        disks, networks = self.devices.result(self.snapshot)
        firmware = self.devices.firmware(self.snapshot)
        memory = self._memory_result()
        for place, id in self.waiting_serials:
            self.serials[place] = self.devices.chardevs.serial(id, f"-serial chardev:{id}")
        serials = [*self.serials, *self.devices.serials]
        if self.hotplug and not self.devices.pmem:
            raise refuse(f"-m {self.hotplug}", "memory can't be added later; give what the guest is to have")
        if not serials and not self.no_serial and not self.graphic and self.defaults:
            serials = [Serial(kind="stdio")]
        display = self.display or ("window" if self.graphic and self.defaults else "none")
        bios = "" if firmware.code else _in_data_directory(self.texts.get("bios", ""))
        return Description(
            name=self.texts.get("name", ""),
            uuid=self.texts.get("uuid", ""),
            board=self.board,
            accel=self._accel_result(),
            cpu=self.cpu,
            cpu_enforce=self.cpu_enforce,
            one_socket=self.one_socket,
            cpus=self.cpus,
            memory=memory,
            kernel=self.texts.get("kernel", ""),
            initrd=tuple(self.initrd),
            append=self.texts.get("append", ""),
            firmware=msgspec.structs.replace(firmware, bios=bios, secure=self.secure),
            boot_order=self.boot_order,
            disks=disks,
            networks=networks,
            defaults=self.defaults and self.board != "microvm" and not self.devices.no_network,
            serials=tuple(serials),
            display=display,  # type: ignore[arg-type] # one of the three
            vnc=self.vnc,
            graphics=self.devices.graphics,
            input=tuple(self.devices.input),
            rng=self.devices.rng,
            rng_limits=self.devices.rng_limits,
            ports=tuple(self.devices.ports),
            vhost_user=tuple(self.devices.vhost_user),
            pmem=tuple(self.devices.pmem),
            balloon=self.devices.balloon,
            vsock=self.devices.vsock,
            debug_exit=self.devices.debug_exit,
            reboot=self.reboot,
            snapshot=self.snapshot,
            daemonize=self.daemonize,
            pidfile=self.texts.get("pidfile", ""),
        )

    def _accel_result(self) -> Accel:
        for accel in self.accels:
            if accel not in ("kvm", "tcg"):
                raise refuse(f"-accel {accel}", "it has kvm and tcg")
        # QEMU's own default is tcg; ours is what is faster here, which is what somebody who says nothing wants.
        return {(): "auto", ("kvm",): "kvm", ("tcg",): "tcg"}.get(tuple(dict.fromkeys(self.accels)), "auto")  # type: ignore[return-value] # one of the three

    def _memory_result(self) -> Memory:
        if self.memory_backend:
            backend = self.backends.get(self.memory_backend)
            if backend is None:
                raise BadInput(f"qemu: no -object has id={self.memory_backend}, which is to be the guest's memory")
            if backend.size != self.memory:
                raise BadInput(f"qemu: -m gives {self.memory} bytes, -object {self.memory_backend} {backend.size}")
            return backend
        return Memory(size=self.memory, path=self.memory_path, preallocate=self.preallocate)
