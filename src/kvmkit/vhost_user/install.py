"""The command that installs a helper program on this distribution."""

from __future__ import annotations

from collections.abc import Mapping

INSTALL = {
    "debian": "sudo apt-get install",
    "arch": "sudo pacman -S",
    "fedora": "sudo dnf install",
    "suse": "sudo zypper install",
    "alpine": "sudo apk add",
}


def release() -> dict[str, str]:
    """The variables of /etc/os-release."""
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            pairs = [line.strip().partition("=") for line in file]
    except OSError:
        return {}
    return {key: value.strip("\"'") for key, _, value in pairs}


def how(packages: Mapping[str, str]) -> str:
    """By `packages`: the package's name by distribution, "" for those not named; "debian 12" is one release."""
    found = release()
    families = f"{found.get('ID', '')} {found.get('ID_LIKE', '')}".split()
    family = next((name for name in INSTALL if any(name in one for one in families)), "debian" * ("ubuntu" in families))
    package = packages.get(f"{found.get('ID')} {found.get('VERSION_ID')}") or packages.get(family) or packages[""]
    return f"{INSTALL[family]} {package}" if family else f"install your distribution's package {package}"
