"""The balloon with Linux: memory that the guest frees, or is told to spare, is the host's again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

pytestmark = pytest.mark.guest
MIB = 1 << 20


@pytest.fixture(scope="module")
def soft(kvmkit) -> Iterator[str]:
    assert kvmkit("run", "-d", "--name", "soft", "--accel", "tcg", "--memory", "512M", "--balloon").returncode == 0
    assert kvmkit("wait", "--ready", "soft").returncode == 0
    yield "soft"
    kvmkit("rm", "-f", "soft")


def live(kvmkit) -> dict:
    told: dict = json.loads(kvmkit("inspect", "soft").stdout)[0]["live"]
    return told


def until(kvmkit, true: Callable[[dict], bool]) -> dict:
    end = time.monotonic() + 60
    while not true(told := live(kvmkit)):
        assert time.monotonic() < end, told
        time.sleep(0.2)
    return told


def given(kvmkit) -> int:
    """As `kvmkit ps` has it, bytes."""
    return next(row["memory_given"] for row in json.loads(kvmkit("ps", "--json").stdout) if row["name"] == "soft")


def test_freed_memory_is_reported_and_goes_back(kvmkit, soft: str) -> None:
    fill = "dd if=/dev/zero of=/tmp/x bs=1M count=120 2>/dev/null"
    assert kvmkit("exec", soft, "sh", "-c", fill).returncode == 0
    full = live(kvmkit)["memory_used_bytes"]
    assert kvmkit("exec", soft, "rm", "/tmp/x").returncode == 0
    told = until(kvmkit, lambda told: told["memory_used_bytes"] < full - 80 * MIB)
    assert told["balloon"]["returned_bytes"] >= 80 * MIB
    assert told["balloon"]["guest"]["total_bytes"] > 300 * MIB


def test_a_target_is_reached_both_ways(kvmkit, soft: str) -> None:
    done = kvmkit("set", soft, "--memory-target", "256M")
    assert done.stdout == "memory: 256M of 512M are to be the guest's\n", done
    until(kvmkit, lambda told: told["balloon"]["given_bytes"] == 256 * MIB)
    end = time.monotonic() + 20
    while given(kvmkit) != 256 * MIB:
        assert time.monotonic() < end
        time.sleep(0.2)
    free = int(kvmkit("exec", soft, "sh", "-c", "grep MemAvailable /proc/meminfo | tr -dc 0-9").stdout)
    assert free < 256 << 10
    assert kvmkit("exec", soft, "dd", "if=/dev/zero", "of=/tmp/y", "bs=1M", "count=8").returncode == 0
    assert kvmkit("set", soft, "--memory-target", "512M").returncode == 0
    until(kvmkit, lambda told: told["balloon"]["given_bytes"] == 0)
    assert kvmkit("exec", soft, "sh", "-c", "cmp -n 8388608 /tmp/y /dev/zero && rm /tmp/y").returncode == 0


def test_a_guest_in_need_takes_it_back(kvmkit, soft: str) -> None:
    assert kvmkit("set", soft, "--memory-target", "192M").returncode == 0
    until(kvmkit, lambda told: told["balloon"]["given_bytes"] == 320 * MIB)
    done = kvmkit("exec", soft, "sh", "-c", "dd if=/dev/zero of=/tmp/z bs=1M count=200 2>&1 && rm /tmp/z")
    assert done.returncode == 0, done
    assert kvmkit("set", soft, "--memory-target", "512M").returncode == 0
    until(kvmkit, lambda told: told["balloon"]["given_bytes"] == 0)


@pytest.mark.parametrize(("size", "word"), [("1G", "the guest has 512M"), ("x", "not a size")])
def test_targets_that_can_t_be(kvmkit, soft: str, size: str, word: str) -> None:
    done = kvmkit("set", soft, "--memory-target", size)
    assert done.returncode == 2
    assert word in done.stderr


def test_a_vm_without_a_balloon_says_so(kvmkit, web: str) -> None:
    done = kvmkit("set", web, "--memory-target", "64M")
    assert (done.returncode, "give it --balloon at its start" in done.stderr) == (2, True)
    refused = kvmkit("run", "--balloon", "--hugepages=2M", "--", "true")
    assert (refused.returncode, "reserved huge pages" in refused.stderr) == (2, True)
