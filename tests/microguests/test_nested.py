"""The VMM that guests run (see tests/kvmhost/test_host.py) is assembled here, where there is an assembler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nested import BASE, HEADERS, vmm

import kvmkit
from kvmkit.accel import models
from kvmkit.accel.features import canonical


def test_the_vmm_is_a_program() -> None:
    program = vmm()
    assert program.startswith(b"\x7fELF")
    assert int.from_bytes(program[24:32], "little") == BASE + HEADERS
    assert b"/dev/kvm\0" in program


def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmkit.__file__).parent.parent)}
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "60", *arguments]
    return subprocess.run(command, input=data, capture_output=True, timeout=90, env=environment, check=False)


@pytest.mark.guest
def test_a_guest_of_the_software_cpu_loads_kvm_amd_and_runs_a_guest() -> None:
    script = "grep -owm1 svm /proc/cpuinfo; modprobe kvm_amd; cat > /tmp/v; chmod +x /tmp/v; timeout 30 /tmp/v"
    done = run("--nested", "--", "sh", "-c", script, data=vmm())
    assert (done.returncode, done.stdout) == (0, b"svm\nN from a guest of this guest\n"), done.stderr


@pytest.mark.guest
def test_a_named_model_is_what_the_guest_sees() -> None:
    """Linux's flags by CPUID, in its own names; those it sets by itself are none of a model's."""
    done = run("--cpu", "Westmere,-aes", "--", "cat", "/proc/cpuinfo")
    lines = dict(line.split("\t:", 1) if "\t:" in line else (line, "") for line in done.stdout.decode().splitlines())
    told = {key.strip(): value.strip() for key, value in lines.items()}
    assert (told["model name"], told["cpu family"], told["model"]) == ("kvmkit Westmere CPU", "6", "44")
    seen = {canonical(flag) for flag in told["flags"].split()}
    wanted = set(models.features("Westmere")) - {"vme", "aes"}  # the software CPU has no virtual-8086 extensions
    assert wanted <= seen
    assert not seen & {"aes", "avx", "xsave", "smep", "svm", "abm", "sse4a"}
