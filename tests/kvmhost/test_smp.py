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
def test_every_vcpu_is_a_processor(cpus: int) -> None:
    with Linux(cpus=cpus) as guest:
        assert guest.sh("nproc") == f"{cpus}\n"
