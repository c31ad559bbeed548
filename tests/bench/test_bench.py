"""`kvmkit bench` measures what it says. What times come out is not looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from kvmkit.bench import boot, exits, kernel, qemu
from kvmkit.bench.processes import Child, RunFailedError, cpu_ns, resident_mapping
from kvmkit.bench.summary import Spread, pairs, spread, table
from kvmkit.errors import HostError


def bench(*arguments, **environment):
    command = [sys.executable, "-m", "kvmkit", "bench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def usable_kvm():
    from kvmkit.accel.choose import choose

    try:
        choose("kvm")
    except HostError as error:
        pytest.skip(str(error))


def run_on_tcg(path):
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--memory", "16M", "--debug-exit"]
    done = subprocess.run(
        [*command, "--stats", f"{path}.json", "--kernel", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done, json.loads((path.parent / f"{path.name}.json").read_text())["exits"]


@pytest.mark.parametrize("kind", kernel.KINDS)
def test_the_kernel_runs_to_its_end_on_a_plain_pc(kind, tmp_path):
    path = tmp_path / "k.elf"
    path.write_bytes(kernel.build(kind, 1000))
    done, _ = run_on_tcg(path)
    assert done.stdout == kernel.START + kernel.END
    assert done.returncode == exits.DEBUG_EXIT_STATUS


@pytest.mark.kvm
@pytest.mark.usefixtures("usable_kvm")
@pytest.mark.parametrize("kind", kernel.KINDS)
def test_the_bare_loop_sees_each_exit(kind, tmp_path):
    from kvmkit.bench.bare_process import run

    path = tmp_path / "k.elf"
    path.write_bytes(kernel.build(kind, 1000))
    read, write = os.pipe()
    said = len(kernel.START + kernel.END)
    assert run(path, write) == kernel.WARM_UP + 1000 + said + kernel.TAIL + 1  # the last is the debug exit's
    assert os.read(read, 100) == kernel.START + kernel.END
    os.close(read)
    os.close(write)


def test_a_kernel_of_no_exits_can_not_be():
    for number in (0, kernel.MAX_EXITS + 1):
        with pytest.raises(ValueError, match="exits"):
            kernel.build("port", number)


@pytest.mark.kvm
@pytest.mark.usefixtures("usable_kvm")
def test_exits_are_counted_on_every_side():
    done = bench("exits", "--runs", "1", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["kinds"]) == set(kernel.KINDS)
    for found in report["kinds"].values():
        assert found["exits"] >= exits.CALIBRATION
        for side in ("bare", "kvmkit", *(["qemu"] if report["qemu_version"] else [])):
            assert len(found[side]) == 1
            assert found[side][0]["wall_ns"] > 0
            assert found[side][0]["cpu_ns"] is None or found[side][0]["cpu_ns"] >= 0
            assert found["summary"][f"{side}_rate"]["median"] > 0


@pytest.mark.guest
def test_boots_alternate_and_are_told():
    done = bench("boot", "--accel", "tcg", "--runs", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    sides = ["kvmkit", *(["qemu"] if report["qemu_version"] else [])]
    for side in sides:
        (one,) = report[side]
        assert 0 < one["user_space_ms"] < one["command_end_ms"]
        assert one["cpu_ms"] > 0
        assert 0 < one["vmm_bytes"] < one["peak_rss_bytes"]
    assert set(report["summary"]) == set(boot.METRICS)


@pytest.mark.guest
def test_without_qemu_kvmkit_is_measured_alone(tmp_path):
    (tmp_path / "sh").symlink_to(shutil.which("sh"))
    done = bench("boot", "--accel", "tcg", "--runs", "1", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert qemu.MISSING in done.stdout
    assert "in pairs" not in done.stdout


@pytest.mark.guest
def test_a_boot_that_takes_too_long_is_no_success():
    done = bench("boot", "--accel", "tcg", "--runs", "2", "--timeout", "0.1", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["kvmkit"] == []
    assert "within 0.1 s" in report["failures"][0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["boot", "--runs", "0"], "--runs 0"),
        (["boot", "--runs", "many"], "--runs many"),
        (["exits", "--seconds", "nan"], "--seconds nan"),
        (["exits", "--timeout", "x"], "--timeout x"),
        (["boot", "--memory", "x"], "--memory x"),
        (["boot", "--accel", "xen"], "xen"),
        ([], "WHAT"),
    ],
)
def test_bad_input_is_one_line(arguments, word):
    done = bench(*arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_child_is_bounded_and_leaves_nothing():
    with pytest.raises(RunFailedError, match="not done within"), Child(["sleep", "60"], 0.05) as child:
        child.wait()
    assert child.cpu_seconds is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_child_that_says_nothing_is_told_with_its_last_words():
    command = ["sh", "-c", "echo so it ends >&2"]
    with Child(command, 10, pipe=True) as child, pytest.raises(RunFailedError, match="too early: so it ends"):
        child.read_line(b"x\n")


def test_cpu_time_grows_with_work():
    before = cpu_ns(os.getpid())
    start = time.process_time()
    while time.process_time() - start < 0.02:
        pass
    assert cpu_ns(os.getpid()) > before
    assert cpu_ns(1 << 30) == 0


def test_a_mapping_that_is_not_there_is_told_as_none():
    assert resident_mapping(os.getpid(), 1 << 44) is None
    assert resident_mapping(1 << 30, 1 << 20) is None


def test_spreads_and_pairs():
    assert spread([]) is None
    assert spread([3, 1, 2]) == Spread(1, 2, 3)
    assert pairs([2.0, None, 9.0], [1.0, 5.0, 3.0]) == Spread(2, 2.5, 3)
    assert pairs([None], [1.0]) is None


def test_a_table_in_a_pipe_is_plain_columns():
    out = io.StringIO()
    table(["", "a"], [["row", "1"], ["r", "22"]], out)
    assert out.getvalue() == "      a\nrow   1\nr    22\n"
