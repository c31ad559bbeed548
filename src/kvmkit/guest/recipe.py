"""What identifies the default guest; apart from how it is built, so that using it does not load that."""

from __future__ import annotations

RECIPE = 7  # raise it when debian.py, cpio.py or modules.py makes a different image

APPEND = "quiet cryptomgr.notests"
"""Kernel parameters that suit the guest on any machine; the machine adds its own (console=, ...)."""
