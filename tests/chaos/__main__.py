"""python -m tests.chaos --minutes 5: VMs that work while what they are made of is killed at random.

Killed are the VM's process, passt, qemu-storage-daemon, virtiofsd, the guest with its agent, and kvmkit's own commands;
and two commands are called on one VM at once. In the end every VM is accounted for, every file system is whole and has
what the guest had synced, and no process, mount, interface, socket or file is left. What is wrong is printed, and the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .run import missing, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--vms", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="the same harms in the same order")
    arguments = parser.parse_args()
    if without := missing():
        sys.exit(f"not installed: {', '.join(without)}")
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kvmkit-chaos-") as work:
        wrong = run(Path(work), arguments.minutes * 60, arguments.seed, arguments.vms, lambda text: print(text))
    for line in wrong:
        print(f"wrong: {line}")
    print(f"{len(wrong)} things are wrong" if wrong else "all is accounted for")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
