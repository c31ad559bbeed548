"""The run from a clean home to a clean host."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kvmkit.manager import home as homes

from . import account
from .harm import Harm
from .vm import ChaosVM, call

PROGRAMS = ("passt", "qemu-storage-daemon", "qemu-img", "mke2fs", "e2fsck", "debugfs")


def missing() -> list[str]:
    """Programs that the run needs and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


def run(work: Path, seconds: float, seed: int, count: int, say: Callable[[str], None]) -> list[str]:
    """Harm `count` VMs at random for `seconds`; returns what is wrong at the end. `work` is a new directory."""
    home = work / "home"
    before = account.outside()
    settings = {"KVMKIT_HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    (home / "tmp").mkdir(parents=True)
    (home / "cache").mkdir()
    _share_images(home)
    kept = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        return _run(work, home, before, seconds, random.Random(seed), count, say)
    finally:
        for name in homes.listing():
            call("rm", "-f", name)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _share_images(home: Path) -> None:
    from kvmkit.paths import cache_dir

    os.symlink(cache_dir() / "images", home / "cache" / "images")


def _run(
    work: Path, home: Path, before: dict[str, set[str]], seconds: float, chance: random.Random, count: int,
    say: Callable[[str], None],
) -> list[str]:  # fmt: skip
    vms = [ChaosVM(f"c{number}", work) for number in range(count)]
    for vm in vms:
        vm.create()
    over = threading.Event()
    minders = [threading.Thread(target=vm.mind, args=(over,), name=vm.name) for vm in vms]
    for minder in minders:
        minder.start()
    harm = Harm(vms, chance)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.2, 2.0))
        harm.once()
    over.set()
    for vm in vms:
        if vm.writer is not None and vm.writer.poll() is None:
            vm.writer.kill()
    for minder in minders:
        minder.join()
    wrong = harm.trouble + [line for vm in vms for line in vm.trouble]
    done = call("stop", "--timeout", "15", *(vm.name for vm in vms))
    if done.returncode:
        wrong.append(f"stop: {done.stderr}")
    wrong += account.states()
    for vm in vms:
        wrong += account.disks(vm, home / "data" / "machines", work)
    left = homes.listing()
    if set(left) - {vm.name for vm in vms}:
        say(f"VMs without a name whose process was killed: {len(left) - len(vms)}")
    call("rm", "-f", *left)
    wrong += account.leftovers(home, before)
    _tell(vms, harm.done, say)
    return wrong


def _tell(vms: list[ChaosVM], done: Counter[str], say: Callable[[str], None]) -> None:
    say(", ".join(f"{what}: {count}" for what, count in sorted(done.items())))
    for vm in vms:
        ends = ", ".join(f"{reason}: {count}" for reason, count in sorted(vm.ends.items()))
        say(f"{vm.name}: {vm.starts} starts, {len(vm.safe)} files safe on its disk; it ended by {ends or 'nothing'}")
