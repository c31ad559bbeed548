"""Help, version, and what a call costs before it does anything."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from calling import COMMAND, SOURCE, environment

from kvmkit import __version__
from kvmkit.cli.topics import TOPICS
from kvmkit.cli.verbs import VERBS

HEAVY = {"rich", "asyncio", "ssl", "subprocess", "hashlib", "http", "unicorn", "Cython", "multiprocessing", "shutil"}
HEAVY |= {"dataclasses", "ctypes", "json", "gettext", "tempfile", "string", "tty", "calendar", "difflib"}


def test_help_lists_every_verb_and_topic(kvmkit) -> None:
    for words in [], ["help"], ["--help"], ["-h"]:
        done = kvmkit(*words)
        assert done.returncode == 0
        assert all(f"  {name} " in done.stdout for name in [*VERBS, *TOPICS])


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(kvmkit, verb: str) -> None:
    done = kvmkit("help", verb)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: kvmkit {verb}")
    assert done.stderr == ""
    assert kvmkit(verb, "--help").stdout.strip() == done.stdout.strip()


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_is_explained(kvmkit, topic: str) -> None:
    done = kvmkit("help", topic)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


def test_help_of_a_part_of_a_verb(kvmkit) -> None:
    assert "--vendor" in kvmkit("help", "host", "nested").stdout


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(kvmkit, word: str) -> None:
    done = kvmkit(word)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kvmkit {__version__}\n", "")


def test_accel_says_what_was_found_and_why(kvmkit) -> None:
    import json

    told = json.loads(kvmkit("accel", "--json").stdout)
    assert told["engine"] in ("kvm", "tcg")
    assert (told["engine"] == "kvm") == told["fit"]
    assert told["reason"]
    shown = kvmkit("accel").stdout
    assert told["engine"] in shown
    assert told["reason"] in shown


def test_a_reader_that_leaves_is_no_error_of_ours() -> None:
    process = subprocess.Popen([*COMMAND, "help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 141)
    assert err == b""


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "help"], stdout=full, stderr=subprocess.PIPE, env=environment())
    assert done.returncode == 1
    assert done.stderr == b"kvmkit: No space left on device\n"


def imported(code: str) -> set[str]:
    """The top-level modules loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    return set(done.stdout.split())


def test_nothing_heavy_is_imported_on_the_way_to_run() -> None:
    loaded = imported("import kvmkit.cli.main, kvmkit.cli.run, kvmkit.cli.session, kvmkit.machine, kvmkit.guest.images")
    loaded |= imported("import kvmkit.cli.main, kvmkit.manager.vmm, kvmkit.boot.acpi, kvmkit.accel.choose")
    assert not loaded & HEAVY


def took(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - began


def test_the_version_costs_little_more_than_python_itself() -> None:
    ours = [sys.executable, "-P", str(SOURCE / "kvmkit" / "__main__.py"), "--version"]
    pairs = [(took([sys.executable, "-c", "pass"]), took(ours)) for _ in range(20)]  # in turns, as others work as well
    assert min(our for _, our in pairs) < 2.5 * min(bare for bare, _ in pairs)
