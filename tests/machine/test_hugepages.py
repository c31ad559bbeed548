"""Guest RAM on huge pages: reserved ones counted by the kernel, transparent ones seen in smaps, too few refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmkit
from kvmkit.errors import BadInput, HostError
from kvmkit.memory import GuestMemory, backing

MIB = 1 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def counted(name: str) -> int:
    return int((POOL / name).read_text())


@pytest.fixture
def pages() -> Iterator[int]:
    """64 more huge pages of 2 MiB than there were, for a test's time."""
    if os.geteuid() != 0 or not os.access(POOL / "nr_hugepages", os.W_OK):
        pytest.skip("reserving huge pages needs root")
    before = counted("nr_hugepages")
    (POOL / "nr_hugepages").write_text(str(before + 64))
    try:
        if counted("nr_hugepages") != before + 64:
            pytest.skip("the kernel has no 64 huge pages to give")
        yield 64
    finally:
        (POOL / "nr_hugepages").write_text(str(before))


@pytest.mark.root
def test_reserved_pages_are_promised_taken_and_given_back(pages: int) -> None:
    free, promised = counted("free_hugepages"), counted("resv_hugepages")
    memory = backing.allocate(32 * MIB, hugepages="2M")
    assert counted("resv_hugepages") - promised == 16, "promised, so that a guest never misses one"
    memory.write(0, b"x")
    memory.write(31 * MIB, b"y")
    assert free - counted("free_hugepages") == 2
    assert re.search(r"^KernelPageSize: +2048 kB$", smaps_of(memory), re.MULTILINE)
    assert (memory.read(0, 1), memory.read(31 * MIB, 1), memory.size) == (b"x", b"y", 32 * MIB)
    memory.close()
    del memory
    assert (counted("free_hugepages"), counted("resv_hugepages")) == (free, promised)


def smaps_of(memory: GuestMemory) -> str:
    """The part of this process's smaps that describes the memory."""
    [(_, address, _), *_] = memory.regions()
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(text, 16) for text in part.split(" ", 1)[0].split("-"))
        if start <= address < end:
            return part
    raise AssertionError("the memory is not mapped")


@pytest.mark.root
def test_preallocated_memory_takes_all_at_once(pages: int) -> None:
    free = counted("free_hugepages")
    memory = backing.allocate(17 * MIB, hugepages="default", preallocate=True)
    assert free - counted("free_hugepages") == 9
    memory.close()


@pytest.mark.root
def test_too_few_are_refused_with_the_number_and_the_command(pages: int) -> None:
    with pytest.raises(HostError) as refused:
        backing.check(1 << 40, "2M")
    text = str(refused.value)
    free = counted("free_hugepages") - counted("resv_hugepages")
    assert f"{(1 << 19) - free} are missing" in text
    assert "sudo kvmkit host hugepages enable --memory " in text
    assert "\n" not in text


@pytest.mark.root
def test_mem_path_takes_a_file_of_hugetlbfs(pages: int, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "hugetlbfs", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("hugetlbfs can't be mounted here")
    try:
        free = counted("free_hugepages")
        memory = backing.allocate(8 * MIB, path=str(tmp_path), preallocate=True)
        assert free - counted("free_hugepages") == 4
        assert list(tmp_path.iterdir()) == [], "the file has no name left that could stay behind"
        memory.close()
        del memory
        assert counted("free_hugepages") == free
        with pytest.raises(HostError, match="are missing"):
            backing.check(1 << 40, path=str(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_mem_path_takes_an_ordinary_directory_too(tmp_path: Path) -> None:
    memory = backing.allocate(3 * MIB, path=str(tmp_path))
    memory.write(2 * MIB, b"there")
    assert memory.read(2 * MIB, 5) == b"there"
    memory.close()


def test_mem_path_that_is_not_there_says_what_makes_it() -> None:
    if os.path.isdir("/dev/hugepages"):
        pytest.skip("/dev/hugepages is there")
    with pytest.raises(HostError, match="kvmkit host hugepages enable"):
        backing.check(MIB, path="/dev/hugepages")


@pytest.mark.skipif(not TRANSPARENT.exists(), reason="this kernel has no transparent huge pages")
def test_transparent_pages_are_asked_for_at_a_multiple_of_their_size() -> None:
    if "[never]" in TRANSPARENT.read_text():
        with pytest.raises(HostError, match="transparent_hugepage/enabled"):
            backing.allocate(16 * MIB, hugepages="transparent")
        return
    memory = backing.allocate(16 * MIB, hugepages="transparent", preallocate=True)
    [(_, address, _)] = memory.regions()
    assert address % (2 * MIB) == 0
    part = smaps_of(memory)
    assert re.search(r"^VmFlags:.* hg\b", part, re.MULTILINE)
    found = re.search(r"^(?:AnonHugePages|ShmemPmdMapped):\s+([1-9]\d*) kB", part, re.MULTILINE)
    assert found is not None, "the kernel gave huge pages"
    memory.write(15 * MIB, b"end")
    assert memory.read(15 * MIB, 3) == b"end"
    memory.close()


@pytest.mark.parametrize("word", ["4K", "debian", "2m", ""])
def test_what_is_no_size_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match="2M, 1G or transparent"):
        backing.page_size(word)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(Path(kvmkit.__file__).parent.parent)}
    command = [sys.executable, "-m", "kvmkit", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment, check=False
    )


@pytest.mark.root
@pytest.mark.parametrize("option", ["--hugepages", "--hugepages=2M"])
def test_kvmkit_run_counts_the_pages_of_its_guest(pages: int, option: str, tmp_path: Path) -> None:
    from guests import kernel_that_spins

    kernel = kernel_that_spins(tmp_path)
    free = counted("free_hugepages")
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmkit.__file__).parent.parent)}
    environment["XDG_DATA_HOME"] = str(tmp_path / "data")
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", option, "--memory", "64M", "--kernel", kernel]
    guest = subprocess.Popen(
        [*command, "--name", "web"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert guest.stdout is not None
        assert guest.stdout.read(1) == b"!"
        assert counted("free_hugepages") < free
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert re.search(r"^HugetlbPages:\s+[1-9]", status, re.MULTILINE)
        taken = free - counted("free_hugepages")
        rows = {row["id"]: row for row in json.loads(run("doctor", "--json", **environment).stdout)["rows"]}
        row = rows[f"hugepages.vm.{guest.pid}"]
        assert (row["name"].strip(), row["text"]) == ("web", f"uses {taken} pages")
        [row] = json.loads(run("stats", "--json", **environment).stdout)
        assert row["huge_pages"] == {"2M": taken}
        assert f" {taken}x2M " in run("stats", "web", **environment).stdout
    finally:
        guest.terminate()
        guest.wait(20)
    assert counted("free_hugepages") == free


def test_kvmkit_run_refuses_before_anything_starts() -> None:
    done = run("run", "--accel", "tcg", "--hugepages", "debian")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--hugepages=2M" in done.stderr
    done = run("run", "--nested", "--no-nested")
    assert done.returncode == 2
