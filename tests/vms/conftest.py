"""A home of its own for VMs, with the guest image of the user's, and `kvmkit` called in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.calling import COMMAND, Done, environment

Kvmkit = Callable[..., Done]


def caller(home: Path) -> Kvmkit:
    """Run `kvmkit WORDS` with its VMs in `home`. What it started in the background goes on."""

    def call(*words: str, timeout: float = 90, **options: object) -> Done:
        given: dict = {"stdin": subprocess.DEVNULL, "text": True, **options}
        if "input" in given:
            del given["stdin"]
        env = {**environment(), "KVMKIT_HOME": str(home)}
        return subprocess.run(
            [*COMMAND, *words],
            capture_output=True, env=env, timeout=timeout, check=False, **given,
        )  # fmt: skip

    return call


@contextmanager
def machines_of(home: Path) -> Iterator[Kvmkit]:
    """`kvmkit` with its VMs in `home` and the user's images; no VM is left when it ends."""
    from kvmkit.paths import cache_dir

    (home / "cache").mkdir()
    os.symlink(cache_dir() / "images", home / "cache" / "images")
    run = caller(home)
    yield run
    run("rm", "-f", *run("ps", "-aq").stdout.split())
    assert run("ps", "-aq").stdout == ""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from kvmkit.errors import HostError
    from kvmkit.guest import images

    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")
    home = tmp_path_factory.mktemp("home")
    with machines_of(home):
        yield home


@pytest.fixture(scope="session")
def kvmkit(home: Path) -> Kvmkit:
    return caller(home)


@pytest.fixture(scope="session")
def web(kvmkit: Kvmkit) -> str:
    """A VM that runs, shared by the tests."""
    done = kvmkit("run", "-d", "--name", "web", "--accel", "tcg", "--memory", "128M")
    assert (done.returncode, done.stdout) == (0, "web\n"), done
    assert kvmkit("wait", "--ready", "web").returncode == 0
    return "web"
