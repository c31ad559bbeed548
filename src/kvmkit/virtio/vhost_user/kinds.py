"""The kinds of devices that a backend may serve: which queues they have, and who says what is in their configuration.

Source: virtio 1.2, 5, and what QEMU's vhost-user devices leave to the backend.
"""

from __future__ import annotations

import dataclasses
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvmkit.errors import BadInput
from kvmkit.vhost_user.link import Link
from kvmkit.vhost_user.messages import MOST_CONFIG, Protocol

BLK_CONFIG_BYTES = 60
BLK_NUM_QUEUES = 34  # its place in the configuration space, 16 bits
BLK_MQ = 1 << 12
BLK_FLUSH = 1 << 9
FS_TAG_BYTES = 36
MOST_QUEUES = 64
NET_MAC = 1 << 5
NET_FEATURES = 1 << 0 | 1 << 1 | 0x3F << 6 | 0xF << 11 | 1 << 15 | 1 << 3
"""Checksums, segmentation, merged buffers, MTU: what is between the driver and whoever serves the queues. Not the
control queue and what goes by it, nor the link's status: these would be the VMM's."""
GPU_VIRGL = 1 << 0
ALL = (1 << 64) - 1
DRIVERS = {
    1: "CONFIG_VIRTIO_NET (virtio_net)",
    2: "CONFIG_VIRTIO_BLK (virtio_blk)",
    3: "CONFIG_VIRTIO_CONSOLE (virtio_console)",
    4: "CONFIG_HW_RANDOM_VIRTIO (virtio_rng)",
    5: "CONFIG_VIRTIO_BALLOON (virtio_balloon)",
    8: "CONFIG_SCSI_VIRTIO (virtio_scsi)",
    16: "CONFIG_DRM_VIRTIO_GPU (virtio_gpu)",
    18: "CONFIG_VIRTIO_INPUT (virtio_input)",
    19: "CONFIG_VIRTIO_VSOCKETS (vmw_vsock_virtio_transport)",
    20: "CONFIG_CRYPTO_DEV_VIRTIO (virtio_crypto)",
    23: "CONFIG_VIRTIO_IOMMU (virtio_iommu)",
    24: "CONFIG_VIRTIO_MEM (virtio_mem)",
    25: "CONFIG_SND_VIRTIO (virtio_snd)",
    26: "CONFIG_VIRTIO_FS (virtiofs)",
    27: "CONFIG_VIRTIO_PMEM (virtio_pmem)",
    34: "CONFIG_I2C_VIRTIO (i2c_virtio)",
    40: "CONFIG_BT_VIRTIO (virtio_bt)",
    41: "CONFIG_GPIO_VIRTIO (gpio_virtio)",
}
"""By device ID (5): which option Linux needs."""


@dataclass(frozen=True)
class Kind:
    """`config` makes the configuration space, asking the backend where it is the one to know.

    `finishes`: each request is answered in a time, so that a pause can wait for all. `stateful`: a backend that is
    started again knows nothing of what the driver did with the one before, so the driver has to begin anew.
    `own_features` are offered to the driver here, and kept from the backend. `fixed`: the device has so many queues and
    no others.
    """

    name: str
    device: int
    driver: str
    queues: int
    config: Callable[[Link, int], bytes]
    features: int = ALL
    own_features: int = 0
    finishes: bool = True
    stateful: bool = False
    fixed: bool = False
    display: bool = False
    """Its backend is given one end of a display."""
    flush: int = 0
    """A disk's feature bit that has the driver flush: until then what it writes is kept."""
    config_queues: Callable[[Link], int] | None = None


def _blk_config(link: Link, queues: int) -> bytes:
    config = bytearray(link.get_config(BLK_CONFIG_BYTES))
    if link.features & BLK_MQ:
        struct.pack_into("<H", config, BLK_NUM_QUEUES, queues)
    return bytes(config)


def blk(queues: int = 1) -> Kind:
    return Kind("blk", 2, "CONFIG_VIRTIO_BLK (virtio_blk)", queues, _blk_config, flush=BLK_FLUSH)


def fs(tag: str) -> Kind:
    """A shared directory, mounted by its `tag`."""
    if not 0 < len(tag.encode()) <= FS_TAG_BYTES or "\0" in tag:
        raise BadInput(f"a file system's tag has 1 to {FS_TAG_BYTES} bytes, not {tag!r}")
    config = tag.encode().ljust(FS_TAG_BYTES, b"\0") + struct.pack("<I", 1)
    return Kind("fs", 26, "CONFIG_VIRTIO_FS (virtiofs)", 2, lambda link, queues: config, 0, stateful=True, fixed=True)


def net(mac: str = "") -> Kind:
    """A network card of one queue pair; without `mac`, one is made up."""
    address = _mac(mac) if mac else bytes([0x52, 0x54, 0x00]) + secrets.token_bytes(3)
    # MAC, status, most queue pairs, MTU: 5.1.4. Only the first is said to be there.
    config = struct.pack("<6sHHH", address, 1, 1, 1500)
    return Kind(
        "net",
        1,
        "CONFIG_VIRTIO_NET (virtio_net)",
        2,
        lambda link, queues: config,
        NET_FEATURES & ~(1 << 3),
        own_features=NET_MAC,
        finishes=False,
        fixed=True,
    )


def _mac(text: str) -> bytes:
    parts = text.split(":")
    try:
        if len(parts) != 6 or any(len(part) != 2 for part in parts):
            raise ValueError
        address = bytes(int(part, 16) for part in parts)
    except ValueError:
        raise BadInput(f"mac={text}: a MAC address looks like 52:54:00:12:34:56") from None
    if address[0] & 1:
        raise BadInput(f"mac={text}: is a group's address: its first byte is odd")
    return address


def _scsi_config(link: Link, queues: int) -> bytes:
    # Request queues, segments, sectors, commands per LUN, event, sense and CDB bytes, highest target and LUN: 5.6.4.
    ours = struct.pack("<7IHHI", queues - 2, 254, 0xFFFF, 128, 16, 96, 32, 0, 255, 16383)
    if not link.protocol & Protocol.CONFIG:
        return ours
    theirs = link.get_config(len(ours))
    return struct.pack("<I", queues - 2) + theirs[4:] if any(theirs) else ours


def scsi() -> Kind:
    # Its event queue's buffers stay with it for ever.
    return Kind("scsi", 8, "CONFIG_SCSI_VIRTIO (virtio_scsi)", 3, _scsi_config, 7, finishes=False)


def _gpu_config(link: Link, queues: int) -> bytes:
    # Events read and cleared, screens, sets of capabilities: 5.7.4. The display is ours.
    return struct.pack("<III", 0, 0, 1) + link.get_config(16)[12:]


def gpu() -> Kind:
    """A graphics card: without the features that need more of a display than ours does, such as EDID."""
    return Kind("gpu", 16, DRIVERS[16], 2, _gpu_config, GPU_VIRGL, display=True, fixed=True)


def generic(device: int, queues: int, config_bytes: int = 0) -> Kind:
    """Any device: its virtio ID, its number of queues, and how large its configuration space is (the backend's)."""
    if not 0 < device < 64:
        raise BadInput(f"id={device}: a virtio device ID is 1 to 63")
    if not 0 < queues <= MOST_QUEUES:
        raise BadInput(f"queues={queues}: 1 to {MOST_QUEUES} can be")
    if not 0 <= config_bytes <= MOST_CONFIG:
        raise BadInput(f"config={config_bytes}: a configuration space has up to {MOST_CONFIG} bytes")

    def config(link: Link, queues: int) -> bytes:
        return link.get_config(config_bytes) if config_bytes else b""

    driver = DRIVERS.get(device, f"a driver for virtio device {device}")
    return Kind("generic", device, driver, queues, config, finishes=False, fixed=True)


def parse(name: str, options: Mapping[str, str]) -> Kind:
    """The kind of that name. Raises BadInput, without the option's own name in front, for what can't be."""
    known = {
        "blk": ("queues",),
        "fs": ("tag",),
        "net": ("mac",),
        "scsi": ("queues",),
        "gpu": (),
        "generic": ("id", "queues", "config"),
    }
    if name not in known:
        raise BadInput(f"there is no {name!r}: blk, fs, net, scsi, gpu and generic can be")
    for key in options:
        if key not in known[name]:
            raise BadInput(f"{name} has no option {key!r}; it has {', '.join(known[name])}")
    match name:
        case "blk":
            return blk(number(options, "queues", 1, 8))
        case "fs":
            if "tag" not in options:
                raise BadInput("fs needs tag=NAME, by which the guest mounts it")
            return fs(options["tag"])
        case "net":
            return net(options.get("mac", ""))
        case "gpu":
            return gpu()
        case "scsi":
            return dataclasses.replace(scsi(), queues=2 + number(options, "queues", 1, 8))
    if "id" not in options:
        raise BadInput("generic needs id=N, the virtio device ID (4 is an entropy device)")
    return generic(
        number(options, "id", 0, 63),
        number(options, "queues", 1, MOST_QUEUES),
        number(options, "config", 0, MOST_CONFIG),
    )


def number(options: Mapping[str, str], key: str, otherwise: int, most: int) -> int:
    text = options.get(key)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:9]) <= most:
        raise BadInput(f"{key}={text}: is a number of 1 to {most}")
    return int(text)
