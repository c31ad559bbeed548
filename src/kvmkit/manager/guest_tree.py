"""What `kvmkit guest check` looks at, copied out of the guest of a VM that runs."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmkit.errors import KvmkitError
from kvmkit.manager.copy import unpack
from kvmkit.manager.execute import execute
from kvmkit.manager.home import Home

# /proc and /sys tell no sizes, which tar wants to know first: so their files are copied before.
SCRIPT = """
d=$(mktemp -d) && cd / || exit 1
put() { mkdir -p "$d/${1%/*}"; }
for f in proc/modules proc/cpuinfo proc/version proc/config.gz proc/sys/kernel/osrelease etc/os-release \
    boot/config-"$(uname -r)" lib/modules/"$(uname -r)"/modules.* \
    sys/bus/virtio/devices/*/device sys/bus/pci/devices/*/vendor sys/bus/pci/devices/*/device; do
    [ -f "$f" ] && put "$f" && cat "$f" > "$d/$f"
done
for l in sys/bus/virtio/devices/*/driver sys/bus/pci/devices/*/driver; do
    [ -L "$l" ] && put "$l" && ln -s "$(readlink "$l")" "$d/$l"
done
for m in sys/module/*; do mkdir -p "$d/$m"; done
tar -c -f - -C "$d" .
status=$?
rm -rf "$d"
exit $status
"""


@contextmanager
def copied(home: Home) -> Iterator[str]:
    """A directory on this host with those files, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="kvmkit-guest-") as directory:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        failed: list[Exception] = []

        def read() -> None:
            try:
                with os.fdopen(reading, "rb") as stream:
                    unpack(stream, Path(directory))
            except Exception as error:
                failed.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            status = execute(home, ["sh", "-c", SCRIPT], stdout=writing)
        finally:
            os.close(writing)
            reader.join()
        if failed:
            raise failed[0]
        if status:
            raise KvmkitError(f"can't look into {home.name}: the guest's command ended with {status}")
        yield directory
