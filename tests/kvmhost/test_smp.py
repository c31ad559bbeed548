"""Several vCPUs on kvm: all start, and all work."""

from __future__ import annotations

import pytest

from .linux import Linux

COUNT = 30000
LOAD = f"""
for i in $(seq %d); do
    awk 'BEGIN {{ for (i = 0; i < {COUNT}; i++) x += i / 7; printf "%%.6f\\n", x }}' &
done
wait
"""


def test_one_vcpu_is_one_processor(linux: Linux) -> None:
    assert linux.sh("nproc") == "1\n"


@pytest.mark.parametrize("cpus", [2, 4])
def test_every_vcpu_works(cpus: int) -> None:
    with Linux(cpus=cpus) as guest:
        assert guest.sh("nproc") == f"{cpus}\n"
        before = busy_ticks(guest)
        results = guest.sh(LOAD % cpus, timeout=100).split()
        assert results == [f"{sum(i / 7 for i in range(COUNT)):.6f}"] * cpus
        assert all(now > then for now, then in zip(busy_ticks(guest), before, strict=True))


def busy_ticks(guest: Linux) -> list[int]:
    """Time in user space and in the kernel of each processor, in ticks."""
    lines = [line.split() for line in guest.sh("cat /proc/stat").splitlines()]
    return [int(line[1]) + int(line[3]) for line in lines if line[0][:3] == "cpu" and line[0] != "cpu"]
