"""`kvmkit guest check`: the virtio check, made inside a guest: options of its kernel, modules, devices and drivers."""

from __future__ import annotations

from collections.abc import Iterator

from kvmkit.host.checks.kernel import MEANING, VIRTIO_OPTIONS
from kvmkit.host.context import Context
from kvmkit.host.kernel import Option
from kvmkit.host.report import Report, Row, State
from kvmkit.host.system import Host

OPTIONS = "Options of this kernel"
MODULES = "Modules"
DEVICES = "Devices"

# Device ids of the Virtio specification, section 5, and the driver of each in Linux.
DEVICE_NAMES: dict[int, tuple[str, str]] = {
    1: ("network card", "virtio_net"),
    2: ("disk", "virtio_blk"),
    3: ("serial ports", "virtio_console"),
    4: ("randomness", "virtio_rng"),
    5: ("balloon", "virtio_balloon"),
    8: ("SCSI controller", "virtio_scsi"),
    9: ("9P file system", "9pnet_virtio"),
    16: ("graphics", "virtio_gpu"),
    18: ("input", "virtio_input"),
    19: ("vsock", "vmw_vsock_virtio_transport"),
    20: ("crypto", "virtio_crypto"),
    23: ("IOMMU", "virtio_iommu"),
    24: ("memory", "virtio_mem"),
    25: ("sound", "virtio_snd"),
    26: ("file system", "virtiofs"),
    27: ("persistent memory", "virtio_pmem"),
}

VIRTIO_PCI_VENDOR = "0x1af4"


def check(host: Host) -> Report:
    """Status 0 when every virtio device there is has its driver, 1 when one has none, 2 when there is no device."""
    context = Context(host)
    devices = [*_devices(context), *_unbound_pci(context)]
    report = Report("guest check", [*_options(context), *_modules(context), *devices])
    if not devices:
        report.rows.append(Row("device", DEVICES, "virtio devices", "fail", "none: this is no guest with virtio"))
        report.status, report.verdict = 2, "no virtio device here"
    elif any(row.state == "fail" for row in devices):
        report.status, report.verdict = 1, "a virtio device has no driver"
    else:
        report.verdict = f"all {len(devices)} virtio devices have their driver"
    return report


def _options(context: Context) -> Iterator[Row]:
    if not context.config.source:
        text = "no /proc/config.gz and no /boot/config-*: told by /lib/modules"
        yield Row("config", OPTIONS, "configuration", "unknown", text)
    for option, module, use in VIRTIO_OPTIONS:
        value = context.config.option(option)
        if value == "unknown":
            value = _by_modules(context, module)
        state: State = {"y": "ok", "m": "ok", "missing": "note"}.get(value, "unknown")  # type: ignore[assignment] # a State
        yield Row(f"config.{option}", OPTIONS, option, state, f"{value} ({use})")


def _by_modules(context: Context, module: str) -> Option:
    """The option that makes a module, from the modules there are. One that is not there tells nothing where they are
    a selection, as in an initramfs."""
    state = context.modules.state(module)
    if state == "missing":
        return "missing" if context.modules.complete else "unknown"
    if state in ("loaded", "available"):
        return "m"
    return "y" if state == "built in" else "unknown"


def _modules(context: Context) -> Iterator[Row]:
    core = (("VIRTIO", "virtio", "the bus"), ("VIRTIO", "virtio_ring", "queues"))
    for option, module, use in (*core, *VIRTIO_OPTIONS):
        found = context.modules.state(module)
        if found == "missing" and not context.modules.complete and context.config.option(option) == "unknown":
            yield Row(f"module.{module}", MODULES, module, "note", f"not in this system's /lib/modules ({use})")
            continue
        state: State = "ok" if found in ("loaded", "built in") else "note"
        if found == "unknown":
            value = context.config.option(option)
            told = {"y": "built into the kernel", "missing": MEANING["missing"], "m": "not loaded"}.get(
                value, "not seen"
            )
            yield Row(f"module.{module}", MODULES, module, "ok" if value == "y" else "note", f"{told} ({use})")
        else:
            fix = f"sudo modprobe {module}" if found == "available" and _needed(context, module) else ""
            yield Row(f"module.{module}", MODULES, module, state, f"{MEANING[found]} ({use})", fix)


def _needed(context: Context, module: str) -> bool:
    """Whether a device of this guest waits for the driver."""
    return any(
        DEVICE_NAMES.get(id, ("", ""))[1] == module and not driver for _, id, driver in _virtio_bus(context.host)
    )


def _virtio_bus(host: Host) -> Iterator[tuple[str, int, str]]:
    """(name, device id, driver or '') of each device on the virtio bus."""
    base = "/sys/bus/virtio/devices"
    for name in host.names(base):
        text = host.value(f"{base}/{name}/device") or ""
        try:
            id = int(text, 16)
        except ValueError:
            continue
        driver = (host.link(f"{base}/{name}/driver") or "").rpartition("/")[2]
        yield name, id, driver


def _devices(context: Context) -> Iterator[Row]:
    for name, id, driver in _virtio_bus(context.host):
        kind, wanted = DEVICE_NAMES.get(id, (f"device {id}", ""))
        if driver:
            yield Row(f"device.{name}", DEVICES, name, "ok", f"{kind}: bound to {driver}")
        else:
            fix = f"sudo modprobe {wanted}" if context.modules.state(wanted) == "available" else ""
            yield Row(f"device.{name}", DEVICES, name, "fail", f"{kind}: no driver{_lacks(context, wanted)}", fix)


def _lacks(context: Context, module: str) -> str:
    return "; this kernel does not have it" if module and context.modules.state(module) == "missing" else ""


def _unbound_pci(context: Context) -> Iterator[Row]:
    """Virtio devices on PCI that no transport took: they are not on the virtio bus."""
    base = "/sys/bus/pci/devices"
    host = context.host
    for name in host.names(base):
        if host.value(f"{base}/{name}/vendor") == VIRTIO_PCI_VENDOR and host.link(f"{base}/{name}/driver") is None:
            kind = host.value(f"{base}/{name}/device") or "?"
            text = f"PCI device {kind}: virtio_pci is not bound to it"
            yield Row(f"device.{name}", DEVICES, name, "fail", text, "sudo modprobe virtio_pci")
