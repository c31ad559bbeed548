"""The command that installs a thing on this distribution."""

from __future__ import annotations

from kvmkit.host.system import Host

INSTALL = {
    "debian": "sudo apt-get install",
    "arch": "sudo pacman -S",
    "fedora": "sudo dnf install",
    "suse": "sudo zypper install",
    "alpine": "sudo apk add",
}

# What each family calls the package; "" is for every family not named.
PACKAGES: dict[str, dict[str, str]] = {
    "ovmf": {"debian": "ovmf", "alpine": "ovmf", "suse": "qemu-ovmf-x86_64", "": "edk2-ovmf"},
    "seabios": {"": "seabios", "suse": "qemu-seabios"},
    "swtpm": {"": "swtpm"},
    "passt": {"": "passt"},
    "virtiofsd": {"": "virtiofsd"},
    "qemu-img": {"debian": "qemu-utils", "suse": "qemu-tools", "": "qemu-img"},
    "qemu-storage-daemon": {"debian": "qemu-system-common", "fedora": "qemu-img", "suse": "qemu-tools"},
    "kmod": {"": "kmod"},
}


def install_command(host: Host, thing: str) -> str:
    """'sudo apt-get install ovmf', or '' where the distribution or the package's name is not known."""
    names = PACKAGES[thing]
    family = host.distribution
    if thing == "virtiofsd" and family == "debian" and 'VERSION_ID="12"' in (host.text("/etc/os-release") or ""):
        return "sudo apt-get install qemu-system-common"  # bookworm's virtiofsd is the one of QEMU's tree
    package = names.get(family, names.get(""))
    if not family or package is None:
        return ""
    return f"{INSTALL[family]} {package}"
