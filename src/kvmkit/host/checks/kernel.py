"""Kernel support: `zgrep CONFIG_KVM /proc/config.gz`, `lsmod | grep kvm`, virtio, vhost and TUN."""

from __future__ import annotations

from collections.abc import Iterator

from kvmkit.host.context import Context
from kvmkit.host.kernel import refusal
from kvmkit.host.report import Row, State

GROUP = "Kernel"
VIRTIO = "Virtio in this kernel"
HELPERS = "Vhost and networking"

MEANING = {
    "loaded": "loaded",
    "built in": "built into the kernel",
    "available": "not loaded",
    "missing": "this kernel does not have it",
    "unknown": "not loaded; whether the kernel has it can't be told (no /lib/modules)",
}


def rows(context: Context) -> Iterator[Row]:
    host, config = context.host, context.config
    yield Row("kernel", GROUP, "release", "note", host.release or "unknown")
    source = config.source or "no /proc/config.gz and no /boot/config-*: options can't be told, modules can"
    yield Row("kernel.config", GROUP, "configuration", "note" if config.source else "unknown", source)
    yield _option(context, "KVM", required=True)
    if host.is_x86 and context.cpu.vendor in ("intel", "amd"):
        yield _option(context, "KVM_INTEL" if context.cpu.vendor == "intel" else "KVM_AMD", required=True)
    yield _module(context, "kvm")
    if host.is_x86 and context.vendor_module:
        yield _module(context, context.vendor_module)
    for other, loaded in sorted(context.modules.loaded.items()):
        if "kvm" in loaded.used_by or other in ("kvmgt", "vboxdrv", "vmmon"):
            clash = other in ("vboxdrv", "vmmon")
            text = "uses the processor's virtualization too: it and KVM may not both run VMs" if clash else "loaded"
            yield Row(f"module.{other}", GROUP, other, "warn" if clash else "note", text)


def _option(context: Context, name: str, required: bool) -> Row:
    value = context.config.option(name)
    id, label = f"config.{name}", f"CONFIG_{name}"
    if value == "y":
        return Row(id, GROUP, label, "ok", "y: built in")
    if value == "m":
        return Row(id, GROUP, label, "ok", "m: a module")
    if value == "unknown":
        return Row(id, GROUP, label, "unknown", "no kernel configuration to read")
    # A kernel without the vendor's module that has another one still runs VMs.
    instead = context.vendor_module if context.modules.running(context.vendor_module) else ""
    if instead and name != "KVM":
        return Row(id, GROUP, label, "note", f"missing; this kernel runs VMs by {instead}")
    return Row(id, GROUP, label, "fail" if required else "note", "missing: needs a kernel built with it")


def _module(context: Context, name: str) -> Row:
    state = context.modules.state(name)
    id = f"module.{name}"
    if state in ("loaded", "built in"):
        return Row(id, GROUP, name, "ok", MEANING[state])
    said = refusal(context.log)
    reason = f"; the kernel says: {said[2]} ({said[1]})" if said else ""
    if state == "available":
        level: State = "fail" if context.cpu.extension else "note"
        fix = "sudo kvmkit host modules enable --persist" if context.cpu.extension else ""
        return Row(id, GROUP, name, level, MEANING[state] + reason, fix)
    if not context.modules.installed and context.host.release and context.config.option("KVM") == "m":
        text = f"not loaded, and the running kernel's modules (/lib/modules/{context.host.release}) are gone"
        if context.host.container:
            return Row(id, GROUP, name, "unknown", f"{text} or hidden by the container")
        text += ": an upgrade replaced them; restart into the new kernel"
        return Row(id, GROUP, name, "fail", text, "systemctl reboot")
    if state == "unknown":
        return Row(id, GROUP, name, "unknown", MEANING[state] + reason)
    return Row(id, GROUP, name, "fail", f"missing: {MEANING[state]}{reason}")


VIRTIO_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("VIRTIO_PCI", "virtio_pci", "virtio devices on PCI"),
    ("VIRTIO_MMIO", "virtio_mmio", "virtio devices without PCI"),
    ("VIRTIO_NET", "virtio_net", "network card"),
    ("VIRTIO_BLK", "virtio_blk", "disk"),
    ("SCSI_VIRTIO", "virtio_scsi", "SCSI controller"),
    ("VIRTIO_CONSOLE", "virtio_console", "serial ports and console"),
    ("VIRTIO_BALLOON", "virtio_balloon", "memory balloon"),
    ("HW_RANDOM_VIRTIO", "virtio_rng", "randomness"),
    ("VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport", "sockets between guest and host"),
    ("VIRTIO_FS", "virtiofs", "shared directories"),
    ("VIRTIO_INPUT", "virtio_input", "keyboard and pointer"),
    ("DRM_VIRTIO_GPU", "virtio_gpu", "graphics"),
    ("VIRTIO_MEM", "virtio_mem", "memory that grows and shrinks"),
    ("VIRTIO_PMEM", "virtio_pmem", "persistent memory"),
)


def virtio_rows(context: Context) -> Iterator[Row]:
    """Drivers a guest needs: on a host they matter when this same kernel is booted in a guest."""
    absent = []
    for option, module, use in VIRTIO_OPTIONS:
        value, state = context.config.option(option), context.modules.state(module)
        if value in ("y", "m"):
            how = "y: built in" if value == "y" else f"m: {MEANING[state]}"
        elif state in ("loaded", "built in", "available"):
            how = MEANING[state]
        elif value == "missing":
            absent.append(option)
            continue
        else:
            yield Row(f"virtio.{option}", VIRTIO, option, "unknown", f"{use}: can't be told")
            continue
        yield Row(f"virtio.{option}", VIRTIO, option, "ok", f"{use} ({how})")
    if absent:
        yield Row("virtio.missing", VIRTIO, "missing", "note", ", ".join(absent))


def helper_rows(context: Context) -> Iterator[Row]:
    host = context.host
    for option, module, device, use in (
        ("VHOST_NET", "vhost_net", "/dev/vhost-net", "the kernel carries a TAP network's packets"),
        ("VHOST_VSOCK", "vhost_vsock", "/dev/vhost-vsock", "the kernel carries vsock; without it kvmkit does"),
        ("VHOST_SCSI", "vhost_scsi", "/dev/vhost-scsi", "the kernel serves SCSI disks"),
    ):
        yield _helper(context, option, module, device, use)
    value, state = context.config.option("TUN"), context.modules.state("tun")
    if host.exists("/dev/net/tun"):
        found = host.stat("/dev/net/tun")
        everyone = found is not None and found.st_mode & 0o006 == 0o006
        text = "/dev/net/tun is there" + ("" if everyone else "; only root may open it (passt needs no TUN)")
        yield Row("tun", HELPERS, "TUN/TAP", "ok", text)
    elif state == "available" or value == "m":
        yield Row("tun", HELPERS, "TUN/TAP", "note", "not loaded; TAP networks need it", "sudo modprobe tun")
    elif value == "missing" or state == "missing":
        yield Row("tun", HELPERS, "TUN/TAP", "note", "this kernel does not have it: no TAP networks; use passt")
    else:
        yield Row("tun", HELPERS, "TUN/TAP", "note", "no /dev/net/tun: no TAP networks; use passt")


def _helper(context: Context, option: str, module: str, device: str, use: str) -> Row:
    id = f"vhost.{module}"
    state = context.modules.state(module)
    if context.modules.running(module) or context.host.exists(device):
        return Row(id, HELPERS, module, "ok", f"{MEANING.get(state, 'present')}: {use}")
    if state == "available":
        return Row(id, HELPERS, module, "note", f"not loaded; {use}", f"sudo modprobe {module}")
    if state == "missing" or context.config.option(option) == "missing":
        return Row(id, HELPERS, module, "note", "this kernel does not have it; nothing needs it")
    return Row(id, HELPERS, module, "unknown", "not loaded; whether the kernel has it can't be told")
