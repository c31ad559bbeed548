"""Compile the agent (agent/*.c), which runs in the guest where there is no Python."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from kvmkit.errors import HostError

SOURCE = Path(__file__).parent / "agent"

# No C library (agent/sys.h says why), so nothing that would call into one.
FLAGS = (
    "-std=gnu11 -Os -static -nostdlib -ffreestanding -fno-pie -no-pie -fno-stack-protector -fcf-protection=none"
    " -fno-asynchronous-unwind-tables -Wall -Wextra -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -s"
).split()


def source_key() -> str:
    """Changes whenever the agent does; a checksum of its sources and flags (not a defence against anybody)."""
    checksum = zlib.crc32(" ".join(FLAGS).encode())
    for file in sorted(os.listdir(SOURCE)):
        if file.endswith((".c", ".h")):
            checksum = zlib.crc32((SOURCE / file).read_bytes(), checksum)
    return f"{checksum:08x}"


def compile_agent(directory: Path) -> bytes:
    """The agent's executable; `directory` is for the compiler's files. HostError: no compiler, or it fails."""
    import shutil  # these two cost those who have the image already some milliseconds
    import subprocess

    from kvmkit.guest.child import end_group

    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise HostError("building the guest image needs a C compiler: apt-get install gcc libc6-dev")
    output = directory / "agent"
    sources = [str(file) for file in sorted(SOURCE.glob("*.c"))]
    try:
        process = subprocess.Popen(
            [*compiler.split(), *FLAGS, "-o", str(output), *sources], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(directory)},
        )  # fmt: skip
    except OSError as error:
        raise HostError(f"the C compiler {compiler} does not start: {error.strerror}") from None
    try:
        _out, said = process.communicate()
    finally:
        end_group(process)
    if process.returncode:
        errors = [line for line in said.splitlines() if "error" in line] or [f"status {process.returncode}"]
        raise HostError(f"{compiler} can't compile the guest's agent: {errors[0]} (apt-get install gcc libc6-dev)")
    return output.read_bytes()
