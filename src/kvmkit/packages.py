"""The command that installs a thing, by distribution: told wherever something is missing."""

from __future__ import annotations

INSTALL = {
    "debian": "sudo apt-get install",
    "arch": "sudo pacman -S",
    "fedora": "sudo dnf install",
    "suse": "sudo zypper install",
    "alpine": "sudo apk add",
}

# What each family calls the package; "" is for every family not named, "debian 12" for one release.
PACKAGES: dict[str, dict[str, str]] = {
    "ovmf": {"debian": "ovmf", "alpine": "ovmf", "suse": "qemu-ovmf-x86_64", "": "edk2-ovmf"},
    "seabios": {"": "seabios", "suse": "qemu-seabios"},
    "swtpm": {"": "swtpm"},
    "passt": {"": "passt"},
    # Bookworm's virtiofsd is QEMU's own, in C, with the other files of QEMU's.
    "virtiofsd": {"debian 12": "qemu-system-common", "": "virtiofsd"},
    "qemu-img": {"debian": "qemu-utils", "suse": "qemu-tools", "": "qemu-img"},
    "qemu-storage-daemon": {
        "debian": "qemu-system-common",
        "fedora": "qemu-img",
        "suse": "qemu-tools",
        "": "qemu-storage-daemon",
    },
    "kmod": {"": "kmod"},
}

FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "arch": "arch",
    "fedora": "fedora",
    "rhel": "fedora",
    "centos": "fedora",
    "suse": "suse",
    "opensuse": "suse",
    "alpine": "alpine",
}


def release(text: str) -> dict[str, str]:
    """The variables of os-release(5)."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key.strip()] = value.strip().strip("\"'")
    return found


def family(fields: dict[str, str]) -> str:
    """The family whose package manager there is: debian, arch, fedora, suse, alpine, or ''."""
    for word in f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".split():
        if word in FAMILIES:
            return FAMILIES[word]
        if word.startswith("opensuse"):
            return "suse"
    return ""


def command(thing: str, os_release: str) -> str:
    """'sudo apt-get install ovmf' where os-release(5) holds this; '' where the distribution is not known."""
    fields = release(os_release)
    own = family(fields)
    return f"{INSTALL[own]} {_package(thing, fields)}" if own else ""


def how(thing: str) -> str:
    """The command on this system, or what to look for."""
    text = ""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            break
        except OSError:
            continue
    return command(thing, text) or f"install your distribution's package {_package(thing, release(text))}"


def _package(thing: str, fields: dict[str, str]) -> str:
    names = PACKAGES[thing]
    one_release = f"{fields.get('ID')} {fields.get('VERSION_ID')}"
    return names.get(one_release) or names.get(family(fields)) or names[""]
