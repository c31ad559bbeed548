from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmkit.memory import GuestMemory
from kvmkit.paths import cache_dir

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch, request):
    if "debian_kernel" not in request.fixturenames:
        monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def memory():
    ram = GuestMemory(64 * MIB)
    yield ram
    ram.close()


@pytest.fixture
def file(tmp_path):
    """Write bytes to a file of the test's own."""

    def write(data: bytes, name: str = "kernel") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(scope="session")
def debian_kernel() -> Path:
    """Debian's cloud kernel: downloaded from the machine's own apt sources once, and kept in the cache."""
    directory = cache_dir() / "test-kernels"
    found = sorted(directory.glob("vmlinuz-*-cloud-amd64"))
    if found:
        return found[-1]
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("needs apt-get and dpkg-deb, to download a Debian kernel")
    work = directory / f"download.{os.getpid()}"
    work.mkdir(parents=True)
    try:
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=False
        ).stdout
        names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
        if not names:
            pytest.skip("apt knows no linux-image-cloud-amd64 here (apt-get update?)")
        got = subprocess.run(["apt-get", "download", "-qq", names[0]], cwd=work, capture_output=True, check=False)
        packages = list(work.glob("*.deb"))
        if got.returncode or not packages:
            pytest.skip(f"apt-get download {names[0]} failed: {got.stderr.decode(errors='replace').strip()[-200:]}")
        subprocess.run(["dpkg-deb", "-x", packages[0].name, "tree"], cwd=work, check=True)
        image = next((work / "tree/boot").glob("vmlinuz-*"))
        return image.replace(directory / image.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
