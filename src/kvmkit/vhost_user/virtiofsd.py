"""virtiofsd, which shares a directory of the host's: QEMU's C program (7.2) and the Rust one that came after it."""

from __future__ import annotations

import os
import subprocess

from kvmkit.errors import HostError
from kvmkit.packages import how

from .daemon import Daemon, find

PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd")


def program() -> str:
    """Where it is. HostError, with the command that installs it, when it is not there."""
    found = find("virtiofsd", PLACES)
    if not found:
        raise HostError(f"--volume needs virtiofsd, which is not installed: {how('virtiofsd')}")
    return found


def make(source: str, *, readonly: bool) -> Daemon:
    """A process that will share `source`. As an ordinary user, what the guest's root makes there is that user's."""
    path = program()
    user = os.geteuid() != 0
    is_c = _is_c(path)

    def arguments(listener: int) -> list[str]:
        if is_c:
            return [
                path,
                f"--fd={listener}",
                "-o",
                f"source={source}",
                "-o",
                "cache=auto",
                "-f",
                "-o",
                "log_level=warn",
            ]
        return [path, f"--fd={listener}", f"--shared-dir={source}", "--cache=auto", "--log-level=error"]

    return Daemon(f"volume {source}", arguments, user=user, readonly=source if readonly else "")


def _is_c(path: str) -> bool:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return "FUSE" in said or "setgroups" in said  # the latter from an ordinary user with further groups
