"""libvirt's domain XML -> Description (libvirt.org, formatdomain). What has no counterpart is listed, never dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal
from xml.etree import ElementTree
from xml.parsers import expat

import msgspec

from kvmkit.errors import BadInput
from kvmkit.machine.limits import Limits
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import MAX_DISK_QUEUES, ConsolePort
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.machine.volume import Volume
from kvmkit.manager.description import Description, Disk, Firmware, Forward, Memory, Network, Serial
from kvmkit.manager.libvirt_firmware import read_firmware
from kvmkit.manager.qemu_chardevs import CONSOLE

MOST_XML = 4 << 20  # bytes; a domain is a few KiB
LARGEST = 1 << 52

# libvirt's units: lower-case b names and k, M, ... are powers of 1024, KB, MB, ... of 1000.
UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20}
UNITS |= {"GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40}

# What libvirt writes into every domain and a guest of ours has, or never sees, in any case: (element, attributes with
# their values). Anything else without a counterpart is listed.
HARMLESS: dict[str, tuple[dict[str, str], ...]] = {
    "metadata": ({},),
    "title": ({},),
    "description": ({},),
    "acpi": ({},),
    "apic": ({},),
    "pae": ({},),
    "smm": ({"state": "on"}, {"state": "off"}),
    "vmport": ({"state": "off"},),
    "timer": ({"name": "hpet", "present": "no"},),
    "controller": tuple({"type": kind} for kind in ("pci", "scsi", "virtio-serial", "ide", "sata")),
}
HARMLESS_TEXTS = {"on_poweroff": "destroy", "on_crash": "destroy", "emulator": "/usr/bin/qemu-system-x86_64"}


def _harmless(element: ElementTree.Element) -> bool:
    if element.tag in HARMLESS_TEXTS:
        return (element.text or "").strip() == HARMLESS_TEXTS[element.tag]
    return any(wanted.items() <= element.attrib.items() for wanted in HARMLESS.get(element.tag, ()))


class Imported(msgspec.Struct, frozen=True):
    """`unlisted` are the elements without a counterpart, each as a path with its attributes."""

    description: Description
    unlisted: tuple[str, ...]


def read_domain(text: str | bytes, where: str) -> Imported:
    """Translate a domain; `where` names it in errors. BadInput for what is no domain, or can't be a machine."""
    root = _parse(text, where)
    if root.tag != "domain":
        raise BadInput(f"{where}: is <{root.tag}>, not a libvirt <domain>")
    reader = _Reader(root, where)
    return Imported(reader.description(), tuple(reader.unlisted))


def _parse(text: str | bytes, where: str) -> ElementTree.Element:
    if len(text) > MOST_XML:
        raise BadInput(f"{where}: is larger than any domain ({MOST_XML >> 20} MiB)")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise BadInput(f"{where}: declares a document type, which a domain does not need and can hide a bomb")

    parser.StartDoctypeDeclHandler = refuse
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > 64:
            raise BadInput(f"{where}: elements are nested deeper than in any domain")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise BadInput(f"{where}: is no XML: {error}") from None
    return builder.close()


class _Reader:
    def __init__(self, root: ElementTree.Element, where: str) -> None:
        self.root, self.where = root, where
        self.unlisted: list[str] = []
        self.disks: list[Disk] = []
        self.networks: list[Network] = []
        self.serials: list[Serial] = []
        self.input: list[str] = []
        self.rng = self.balloon = self.graphics = False
        self.rng_limits = Limits()
        self.ports: list[ConsolePort] = []
        self.vhost_user: list[VhostUser] = []
        self.volumes: list[Volume] = []
        self.pmem: list[Pmem] = []
        self.vsock: int | None = None
        self.display: Literal["none", "window", "vnc"] = "none"
        self.vnc = ""

    def leave_out(self, element: ElementTree.Element, inside: str = "domain") -> None:
        attributes = "".join(f" {key}={value!r}" for key, value in element.attrib.items())
        text = (element.text or "").strip()
        told = f"{inside}/{element.tag}{attributes}{f': {text}' if text else ''}"
        self.unlisted.append("".join(c if c.isprintable() else ascii(c)[1:-1] for c in told))

    def parts(self, element: ElementTree.Element) -> None:
        """<features> and <clock>: their own parts decide."""
        if element.tag == "clock" and element.get("offset", "utc") != "utc":
            self.unlisted.append(f"domain/clock offset={element.get('offset')!r}")
        for part in element:
            if not _harmless(part):
                self.leave_out(part, f"domain/{element.tag}")

    def bad(self, text: str) -> BadInput:
        line = f"{self.where}: {text}"
        return BadInput("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))

    def text(self, path: str, default: str = "") -> str:
        found = self.root.find(path)
        return default if found is None else (found.text or "").strip()

    def description(self) -> Description:
        kind = self.root.get("type", "")
        if kind not in ("kvm", "qemu"):
            raise self.bad(f"domain type {kind!r}: kvmkit has kvm and qemu (as tcg)")
        devices = self.root.find("devices")
        for element in list(devices) if devices is not None else ():
            self.device(element)
        firmware, kernel, initrd, append, board, order = self.os()
        memory, cpu, cpus = self.memory(), self.cpu(), self.cpus()
        known = frozenset("name uuid memory vcpu cpu os devices memoryBacking on_reboot".split())
        for element in self.root:
            if element.tag in ("features", "clock"):
                self.parts(element)
            elif element.tag == "maxMemory":
                if not self.pmem:  # with it, it is what libvirt wants beside
                    self.leave_out(element)
            elif element.tag == "currentMemory":
                if self.size(element) != memory.size:
                    self.leave_out(element)
            elif element.tag not in known and not _harmless(element):
                self.leave_out(element)
        self.unlisted = list(dict.fromkeys(self.unlisted))
        return Description(
            name=self.text("name"),
            uuid=self.text("uuid"),
            board=board,
            accel="kvm" if kind == "kvm" else "tcg",
            cpu=cpu,
            cpus=cpus,
            memory=memory,
            kernel=kernel,
            initrd=initrd,
            append=append,
            firmware=firmware,
            boot_order=order,
            disks=tuple(self.disks),
            networks=tuple(self.networks),
            defaults=False,
            serials=tuple(self.serials),
            display=self.display,
            vnc=self.vnc,
            graphics=self.graphics,
            input=tuple(self.input),
            rng=self.rng,
            rng_limits=self.rng_limits,
            ports=tuple(self.ports),
            vhost_user=tuple(self.vhost_user),
            volumes=tuple(self.volumes),
            pmem=tuple(self.pmem),
            balloon=self.balloon,
            vsock=self.vsock,
            reboot=self.text("on_reboot", "restart") == "restart",
        )

    def size(self, element: ElementTree.Element) -> int:
        text, unit = (element.text or "").strip(), element.get("unit", "KiB")
        if not text.isascii() or not text.isdigit() or unit not in UNITS or len(text) > 18:
            raise self.bad(f"<{element.tag} unit={unit!r}> {text!r} is no size")
        size = int(text) * UNITS[unit]
        if not 0 < size <= LARGEST:
            raise self.bad(f"<{element.tag}> {text} {unit}: no machine has that much memory")
        return -(-size // 4096) * 4096

    def memory(self) -> Memory:
        element = self.root.find("memory")
        if element is None:
            raise self.bad("has no <memory>")
        shared = hugepages = preallocate = False
        page: Literal["", "2M", "1G"] = ""
        backing = self.root.find("memoryBacking")
        for part in list(backing) if backing is not None else ():
            if part.tag == "hugepages":
                hugepages = True
                page = self.huge_page(part)
            elif part.tag == "access" and part.get("mode") in ("shared", "private"):
                shared = part.get("mode") == "shared"
            elif part.tag == "allocation" and part.get("mode") in ("immediate", "ondemand"):
                preallocate = part.get("mode") == "immediate"
            elif not (part.tag == "source" and part.get("type") in ("memfd", "anonymous")):
                self.leave_out(part, "domain/memoryBacking")
        return Memory(size=self.size(element), hugepages=hugepages, page=page, shared=shared, preallocate=preallocate)

    def huge_page(self, element: ElementTree.Element) -> Literal["", "2M", "1G"]:
        """The one size of page that is named, if any; for parts of the guest's memory there are none."""
        found: Literal["", "2M", "1G"] = ""
        for part in element:
            size = self.size(part_of_size(part)) if part.get("size") else 0
            if size not in (2 << 20, 1 << 30) or "nodeset" in part.attrib or found:
                self.leave_out(part, "domain/memoryBacking/hugepages")
            else:
                found = "2M" if size == 2 << 20 else "1G"
        return found

    def cpus(self) -> int:
        element = self.root.find("vcpu")
        text = "1" if element is None else (element.text or "").strip()
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 4096:
            raise self.bad(f"<vcpu> {text!r}: is no number of CPUs from 1 to 4096")
        if element is not None:
            for key in ("cpuset", "current"):
                if key in element.attrib:
                    self.unlisted.append(f"domain/vcpu {key}={element.attrib[key]!r}")
        return int(text)

    def cpu(self) -> str:
        element = self.root.find("cpu")
        if element is None:
            return ""
        mode = element.get("mode", "custom")
        models = {"host-passthrough": "host", "host-model": "host", "maximum": "max"}
        model = models.get(mode, (element.findtext("model") or "").strip())
        changes = []
        for part in element:
            if part.tag == "feature" and part.get("policy") in ("require", "force", "disable", "forbid"):
                changes.append(f"{'+' if part.get('policy') in ('require', 'force') else '-'}{part.get('name', '')}")
            elif part.tag == "topology":
                shape = {key: value for key, value in part.attrib.items() if key != "cores" and value != "1"}
                if shape:
                    self.leave_out(part, "domain/cpu")
            elif part.tag != "model":
                self.leave_out(part, "domain/cpu")
        return ",".join([model, *changes]) if model else ""

    def os(self) -> tuple[Firmware, str, tuple[str, ...], str, Literal["pc", "q35", "microvm"], str]:
        element = self.root.find("os")
        if element is None:
            raise self.bad("has no <os>")
        order = ""
        board: Literal["pc", "q35", "microvm"] = "pc"
        for part in element:
            text = (part.text or "").strip()
            if part.tag == "type":
                if text != "hvm" or part.get("arch", "x86_64") not in ("x86_64", "i686"):
                    raise self.bad(f"<os><type arch={part.get('arch')!r}> {text}: kvmkit's machine is an x86 PC (hvm)")
                machine = part.get("machine", "")
                board = "q35" if "q35" in machine else "microvm" if machine == "microvm" else "pc"
            elif part.tag == "boot":
                order += {"hd": "c", "cdrom": "d", "network": "n"}.get(part.get("dev", ""), "")
            elif part.tag not in ("kernel", "initrd", "cmdline", "loader", "nvram", "firmware"):
                self.leave_out(part, "domain/os")
        initrd = self.text("os/initrd")
        firmware = read_firmware(element, self.leave_out)
        return firmware, self.text("os/kernel"), (initrd,) if initrd else (), self.text("os/cmdline"), board, order

    def device(self, element: ElementTree.Element) -> None:
        handler = getattr(self, f"_{element.tag}", None)
        if handler is not None:
            handler(element)
        elif not _harmless(element):
            self.leave_out(element, "devices")

    def _disk(self, element: ElementTree.Element) -> None:
        source, driver, target = element.find("source"), element.find("driver"), element.find("target")
        path = (source.get("file") or source.get("dev") or "") if source is not None else ""
        if element.get("type") == "vhostuser":
            self.backend("blk", element, source, queues=_number(driver, "queues"))
            return
        media = element.get("device", "disk")
        name = "" if target is None else target.get("bus", "") or _bus(target.get("dev", ""))
        bus: Literal["virtio", "ide", "scsi"] | None = None
        if name in ("virtio", "scsi", "ide", "sata"):
            bus = "virtio" if name == "virtio" else "scsi" if name == "scsi" else "ide"
        if not path or bus is None or media not in ("disk", "cdrom"):
            self.leave_out(element, "devices")
            return
        boot = element.find("boot")
        self.disks.append(
            Disk(
                path=path,
                format="" if driver is None else driver.get("type", ""),
                bus=bus,
                media="cdrom" if media == "cdrom" else "disk",
                readonly=element.find("readonly") is not None or media == "cdrom",
                snapshot=element.find("transient") is not None,
                cache="" if driver is None else driver.get("cache", "").replace("default", ""),
                serial=(element.findtext("serial") or "").strip(),
                boot_index=_index(boot),
                queues=min(_number(driver, "queues"), MAX_DISK_QUEUES) if bus == "virtio" else 0,
                **self.iotune(element.find("iotune")),
            )
        )
        known = frozenset(
            "source driver target boot readonly transient serial address alias backingStore iotune".split()
        )
        for part in element:
            if part.tag not in known:
                self.leave_out(part, "devices/disk")

    def iotune(self, element: ElementTree.Element | None) -> dict[str, Any]:
        """Bytes and requests a second, for reads and writes together; `_max` for its length may come at once."""
        found: dict[str, Any] = {}
        parts = {part.tag: part for part in (element if element is not None else ())}
        for kind, what in (("bytes", "bps"), ("iops", "iops")):
            names = [f"total_{kind}_sec", f"total_{kind}_sec_max", f"total_{kind}_sec_max_length"]
            rate, most, length = (_whole(parts.pop(name, None)) for name in names)
            if rate:
                found[what] = float(rate)
                if most:
                    found[f"{what}_burst"] = float(most * (length or 1))
        for part in parts.values():
            if _whole(part):
                self.leave_out(part, "devices/disk/iotune")
        return found

    def backend(
        self, kind: Literal["blk", "fs", "net"], element: ElementTree.Element, source: ElementTree.Element | None,
        *, tag: str = "", mac: str = "", queues: int = 0,
    ) -> None:  # fmt: skip
        """A device that a process behind a socket serves; it listens there, we connect."""
        path = "" if source is None else source.get("path", "") or source.get("socket", "")
        if not path or (source is not None and source.get("mode", "client") != "client"):
            self.leave_out(element, "devices")
            return
        self.vhost_user.append(VhostUser(kind=kind, socket=path, tag=tag, mac=mac, queues=queues))
        known = frozenset("source driver target address alias mac model boot binary".split())
        for part in element:
            if part.tag not in known:
                self.leave_out(part, f"devices/{element.tag}")

    def _filesystem(self, element: ElementTree.Element) -> None:
        driver, source, target = element.find("driver"), element.find("source"), element.find("target")
        tag = "" if target is None else target.get("dir", "")
        if driver is None or driver.get("type") != "virtiofs" or source is None or not tag:
            self.leave_out(element, "devices")
            self.unlisted[-1] += " (kvmkit has <driver type='virtiofs'/>)"
            return
        if source.get("socket"):
            self.backend("fs", element, source, tag=tag)
            return
        readonly = element.find("readonly") is not None
        self.volumes.append(Volume(host=source.get("dir", ""), tag=tag, readonly=readonly))
        for part in element:
            if part.tag not in ("driver", "source", "target", "readonly", "binary", "address", "alias", "idmap"):
                self.leave_out(part, "devices/filesystem")

    def _channel(self, element: ElementTree.Element) -> None:
        source, target = element.find("source"), element.find("target")
        name = "" if target is None else target.get("name", "")
        if element.get("type") != "unix" or target is None or target.get("type") != "virtio" or not name:
            self.leave_out(element, "devices")
            return
        self.port(name, source)

    def port(self, name: str, source: ElementTree.Element | None) -> None:
        """A port of virtio-serial. A socket that libvirt would choose itself is in the VM's directory here."""
        path = "" if source is None else source.get("path", "")
        own = path.startswith(("/var/lib/libvirt/", "/run/libvirt/", "/var/run/libvirt/"))
        self.ports.append(ConsolePort(name=name, path="" if own else path))

    def _memory(self, element: ElementTree.Element) -> None:
        """Persistent memory. libvirt's `access`: whether others see what the guest writes, and the file keeps it."""
        path = (element.findtext("source/path") or "").strip()
        if element.get("model") not in ("nvdimm", "virtio-pmem") or not path:
            self.leave_out(element, "devices")
            return
        readonly = element.find("target/readonly") is not None or element.get("access") == "private"
        self.pmem.append(Pmem(path=path, readonly=readonly))
        if (label := element.find("target/label")) is not None:
            self.leave_out(label, "devices/memory")

    def _interface(self, element: ElementTree.Element) -> None:
        kind, source, target, mac = (
            element.get("type"),
            element.find("source"),
            element.find("target"),
            element.find("mac"),
        )
        address = "" if mac is None else mac.get("address", "")
        if kind == "user":
            forwards = tuple(_forwards(element))
            self.networks.append(Network(kind="user", mac=address, forwards=forwards))
        elif kind == "vhostuser":
            self.backend("net", element, source, mac=address)
            return
        elif kind == "network" and source is not None and source.get("network"):
            self.networks.append(Network(kind="network", interface=source.get("network", ""), mac=address))
        elif kind == "bridge" and source is not None:
            self.networks.append(Network(kind="bridge", interface=source.get("bridge", ""), mac=address))
        elif kind == "ethernet":
            name = "" if target is None else target.get("dev", "")  # none: one is made
            self.networks.append(Network(kind="tap", interface=name, mac=address))
        else:
            self.leave_out(element, "devices")
            return
        for part in element:
            other_card = part.tag == "model" and not part.get("type", "virtio").startswith("virtio")
            if other_card or part.tag not in _INTERFACE:
                self.leave_out(part, "devices/interface")
            if other_card:
                self.unlisted[-1] += " (kvmkit has virtio)"

    def _serial(self, element: ElementTree.Element) -> None:
        kind, source = element.get("type"), element.find("source")
        path = "" if source is None else source.get("path", "")
        if kind in ("pty", "stdio", "null"):
            # libvirt's pty is what `virsh console` shows; here that is the terminal, or `kvmkit console`.
            self.serials.append(Serial(kind="null" if kind == "null" else "stdio"))
        elif kind in ("file", "unix") and path:
            self.serials.append(Serial(kind="file" if kind == "file" else "unix", path=path))
        else:
            self.leave_out(element, "devices")

    def _console(self, element: ElementTree.Element) -> None:
        target = element.find("target")
        kind = "serial" if target is None else target.get("type", "serial")
        if (
            kind == "virtio"
            and element.get("type") in ("pty", "unix")
            and not any(p.name == CONSOLE for p in self.ports)
        ):
            self.port(CONSOLE, element.find("source") if element.get("type") == "unix" else None)
        elif kind != "serial":
            self.leave_out(element, "devices")
        elif self.root.find("devices/serial") is None:  # else it is that port under another name
            self._serial(element)

    def _graphics(self, element: ElementTree.Element) -> None:
        if element.get("type") != "vnc":
            self.leave_out(element, "devices")
            return
        self.display = "vnc"
        listen = element.find("listen")
        socket = element.get("socket") or ("" if listen is None else listen.get("socket", ""))
        address = element.get("listen") or ("" if listen is None else listen.get("address", ""))
        port = element.get("port", "-1")
        self.vnc = f"unix:{socket}" if socket else f"{address or '127.0.0.1'}:{'5900' if port == '-1' else port}"

    def _video(self, element: ElementTree.Element) -> None:
        model = element.find("model")
        kind = "" if model is None else model.get("type", "")
        if kind == "virtio":
            self.graphics = True
        elif kind != "none":
            self.leave_out(element, "devices")
            self.unlisted[-1] += f" (model {kind}; kvmkit has virtio)"

    def _input(self, element: ElementTree.Element) -> None:
        kind = element.get("type", "")
        if element.get("bus") == "virtio" and kind in ("keyboard", "mouse", "tablet"):
            self.input.append(kind)
        elif element.get("bus") != "ps2":
            self.leave_out(element, "devices")

    def _rng(self, element: ElementTree.Element) -> None:
        backend, rate = element.find("backend"), element.find("rate")
        if backend is not None and backend.get("model", "random") not in ("random", "builtin"):
            self.leave_out(element, "devices")
            return
        self.rng = True
        if most := _number(rate, "bytes"):
            period = _number(rate, "period") or 1000  # milliseconds
            self.rng_limits = Limits(bps=most * 1000 / period, bps_burst=float(most))

    def _memballoon(self, element: ElementTree.Element) -> None:
        self.balloon = element.get("model") != "none"
        for part in element:
            if part.tag not in ("stats", "address", "alias", "driver"):  # the guest's numbers are asked for as needed
                self.leave_out(part, "devices/memballoon")

    def _vsock(self, element: ElementTree.Element) -> None:
        cid = element.find("cid")
        text = "" if cid is None else cid.get("address", "")
        if text.isascii() and text.isdigit() and 3 <= int(text[:11]) < (1 << 32) - 1:
            self.vsock = int(text)
        else:
            self.leave_out(element, "devices")


def part_of_size(page: ElementTree.Element) -> ElementTree.Element:
    """<page size="2" unit="M"/> as <page unit="M">2</page>."""
    made = ElementTree.Element(page.tag, unit=page.get("unit", "KiB"))
    made.text = page.get("size")
    return made


def _whole(element: ElementTree.Element | None) -> int:
    """The number in an element; 0: none."""
    text = "" if element is None else (element.text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _number(element: ElementTree.Element | None, key: str) -> int:
    """The number an attribute has; 0: none."""
    text = "" if element is None else element.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _bus(name: str) -> str:
    """The bus libvirt takes from a disk's name."""
    found = re.match(r"(vd|sd|hd)", name)
    return {"vd": "virtio", "sd": "scsi", "hd": "ide"}.get(found[1], "") if found else ""


def _index(boot: ElementTree.Element | None) -> int | None:
    text = "" if boot is None else boot.get("order", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


_INTERFACE = ("source", "target", "mac", "model", "address", "alias", "driver", "backend", "portForward")


def _forwards(interface: ElementTree.Element) -> Iterator[Forward]:
    """Ports of a user network by passt. A range counts up on both sides."""
    for part in interface.findall("portForward"):
        protocol: Literal["tcp", "udp"] = "udp" if part.get("proto") == "udp" else "tcp"
        for ports in part.findall("range"):
            start, end = ports.get("start", ""), ports.get("end", ports.get("start", ""))
            to = ports.get("to", start)
            if not all(text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536 for text in (start, end, to)):
                raise BadInput(f"portForward: {start} to {to}: no ports")
            for offset in range(min(int(end) - int(start) + 1, MOST_FORWARDS)):
                yield Forward(
                    protocol=protocol,
                    host_address=part.get("address", ""),
                    host_port=int(start) + offset,
                    guest_address="",
                    guest_port=int(to) + offset,
                )


MOST_FORWARDS = 1024
