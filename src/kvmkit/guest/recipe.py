"""What identifies the guests that kvmkit builds; apart from how, so that using one does not load that."""

from __future__ import annotations

TINY = 11
"""Raise it when tiny.py, cpio.py or modules.py makes a different image."""

ROOT = 6
"""The same for `debian`: rootdisk.py, drivers.py, disk/erofs.py."""

SYSTEMD = 2
"""The same for `debian-systemd`, beside that: systemd.py."""

APPEND = "quiet cryptomgr.notests"
"""Kernel parameters that suit the guest on any machine; the machine adds its own (console=, ...)."""
