"""Several vCPUs on kvm: all start, and all work."""

from __future__ import annotations

import pytest

from .linux import Linux

LOAD = """
for i in $(seq {cpus}); do
    ( taskset -p $((1 << (i - 1))) $(exec sh -c 'echo $PPID') > /dev/null
      awk 'BEGIN {{ for (i = 0; i < 30000; i++) x += sqrt(i); printf "%.6f\\n", x }}' ) &
done
wait
"""


def test_one_vcpu_is_one_processor(linux: Linux) -> None:
    assert linux.sh("nproc") == "1\n"


@pytest.mark.parametrize("cpus", [2, 4])
def test_every_vcpu_works(cpus: int) -> None:
    with Linux(cpus=cpus) as guest:
        assert guest.sh("nproc") == f"{cpus}\n"
        before = user_ticks(guest)
        results = guest.sh(LOAD.format(cpus=cpus), timeout=100).split()
        assert results == [results[0]] * cpus
        assert results[0] == f"{sum(i**0.5 for i in range(30000)):.6f}"
        assert all(now > then for now, then in zip(user_ticks(guest), before, strict=True))
        rescheduled = next(line for line in guest.sh("cat /proc/interrupts").splitlines() if "RES:" in line)
        assert sum(map(int, rescheduled.split()[1 : 1 + cpus])) > 0
        assert guest.run("poweroff").status == 0
        assert guest.end().wanted


def user_ticks(guest: Linux) -> list[int]:
    """Time in user space of each processor, in ticks."""
    lines = guest.sh("cat /proc/stat").splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("cpu") and line[3].isdigit()]
