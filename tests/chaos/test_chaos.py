"""Some seconds of the long run (`./test --chaos`), and Ctrl-C at every stage of `kvmkit run`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.calling import COMMAND, environment

from kvmkit.errors import HostError
from kvmkit.guest import images

from .account import leftovers, outside
from .run import missing, run

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def image() -> Path:
    """Where the images are that the user has; these among them."""
    try:
        return images.ensure().kernel.parents[2]
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("image")
def test_all_is_accounted_for(tmp_path: Path) -> None:
    said: list[str] = []
    assert not run(tmp_path, 8.0, 20, 2, said.append), said


def home_in(path: Path) -> dict[str, str]:
    home = path / "home"
    (home / "tmp").mkdir(parents=True)
    (home / "cache").mkdir()
    return {**environment(), "KVMKIT_HOME": str(home), "TMPDIR": str(home / "tmp")}


def interrupted(words: list[str], env: dict[str, str], seconds: float, *, alone: bool = False) -> int:
    """Run it, and press Ctrl-C after some time; its exit status. `alone`: SIGTERM instead, to its own process."""
    process = subprocess.Popen(
        [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env,
        start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        if alone:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said or b"kvmkit" not in said, said  # Python itself may be interrupted in its start
    assert process.returncode in (0, 1, 130, 143, -signal.SIGINT, -signal.SIGTERM), said
    return process.returncode


def test_ctrl_c_at_any_moment_of_run(tmp_path: Path, image: Path) -> None:
    env = home_in(tmp_path)
    home = Path(env["KVMKIT_HOME"])
    os.symlink(image, home / "cache" / "images")
    (tmp_path / "work").mkdir()
    disk = str(tmp_path / "d.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    words = ["run", "--accel", "tcg", "--net", "user", "--disk", disk]
    words += ["--volume", f"{tmp_path}/work:/work"] if os.geteuid() == 0 or shutil.which("virtiofsd") else []
    before = outside()
    # From Python's start by the making of the VM and its helpers and the boot to the command and the guest's end.
    for delay in (0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.1, 1.6, 2.3, 3.5):
        status = interrupted([*words, "--", "sh", "-c", "echo in >/work/x; sleep 1"], env, delay)
        assert status in (0, 1, 130, -signal.SIGINT), delay  # 1: Python itself, in its start
        assert not leftovers(home, before), delay


def test_ctrl_c_while_an_image_is_built(tmp_path: Path) -> None:
    env = home_in(tmp_path)
    home = Path(env["KVMKIT_HOME"])
    before = outside()
    for delay, alone in ((0.3, False), (0.6, True), (0.8, False), (0.9, True), (1.6, False)):
        status = interrupted(["run", "tiny", "--accel", "tcg", "--", "true"], env, delay, alone=alone)
        assert status in (0, 1, 130, 143, -signal.SIGINT), delay  # 1: nothing can be fetched here
        assert not leftovers(home, before), delay
        made = home / "cache" / "images" / "tiny"
        if status and made.is_dir():
            time.sleep(0.1)
            half = [one for one in made.iterdir() if one.suffix != ".lock" and not (one / "vmlinuz").exists()]
            assert not half, delay
