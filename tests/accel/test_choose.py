"""Which engine is taken, what is said about it, and what is remembered."""

from __future__ import annotations

import json
import os
import time

import pytest

from kvmkit.accel import choose as chooser
from kvmkit.accel.choose import Probe, choose, probe
from kvmkit.accel.kvm.system import KvmSystem
from kvmkit.errors import BadInput, HostError

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm, or no permission")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    return tmp_path


def test_an_unknown_engine_is_refused():
    with pytest.raises(BadInput, match="auto, kvm, tcg"):
        choose("xen")


def test_tcg_is_taken_without_a_look_at_kvm(home):
    assert choose("tcg").__name__ == "kvmkit.accel.tcg"
    assert not list(home.rglob("accel.json"))


def test_no_device_names_the_command():
    with pytest.raises(HostError) as caught:
        KvmSystem("/dev/kvm-that-is-not-there")
    assert "sudo modprobe kvm_" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_no_permission_names_the_command(tmp_path):
    path = tmp_path / "kvm"
    path.touch(mode=0)
    with pytest.raises(HostError, match=r"sudo usermod -aG kvm \$USER"):
        KvmSystem(str(path))


def test_a_device_that_is_not_kvm_is_refused():
    with pytest.raises(HostError, match="API version"):
        KvmSystem("/dev/null")


@needs_kvm
@pytest.mark.kvm
def test_probe_measures_within_bounds():
    start = time.monotonic()
    found = probe(fresh=True)
    assert time.monotonic() - start < 10
    assert (found.device, found.permission, found.api_version) == (True, True, 12)
    assert found.usable
    assert found.ring0_rate is not None
    assert found.ring0_rate > 0
    assert found.exit_cost is not None
    assert found.exit_cost > 0
    assert found.fit == (found.ring0_rate >= chooser.FAST_ENOUGH)
    assert found.reason
    assert "\n" not in found.reason + found.advice
    assert bool(found.advice) != found.fit


@needs_kvm
@pytest.mark.kvm
def test_speeds_are_remembered_for_this_boot(home):
    first = probe()
    (file,) = home.rglob("accel.json")
    kept = json.loads(file.read_text())
    assert kept["ring0"] == first.ring0_rate
    kept["ring0"] = 12345.0
    file.write_text(json.dumps(kept))
    assert probe().ring0_rate == 12345.0
    assert probe().engine == "kvm"


@needs_kvm
@pytest.mark.kvm
@pytest.mark.parametrize("content", ["", "not json", "[]", "{}", '{"key": "another boot", "ring0": 1, "exit_cost": 1}'])
def test_what_can_not_be_believed_is_measured_again(home, content):
    probe()
    (file,) = home.rglob("accel.json")
    file.write_text(content)
    assert probe().ring0_rate
    assert json.loads(file.read_text())["key"]


@needs_kvm
@pytest.mark.kvm
def test_auto_takes_kvm_where_it_is_fast_and_tcg_elsewhere(home):
    for rate, engine in ((chooser.FAST_ENOUGH, "kvm"), (chooser.FAST_ENOUGH - 1, "tcg")):
        probe()
        (file,) = home.rglob("accel.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), "ring0": rate}))
        assert choose("auto").__name__ == f"kvmkit.accel.{engine}"


@needs_kvm
@pytest.mark.kvm
def test_slow_kvm_is_given_with_one_line_of_warning(home):
    probe()
    (file,) = home.rglob("accel.json")
    lines: list[str] = []
    for rate in (5000.0, 1.5):
        file.write_text(json.dumps({**json.loads(file.read_text()), "ring0": rate}))
        assert choose("kvm", lines.append).__name__ == "kvmkit.accel.kvm"
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "tcg" in lines[0]


def test_a_probe_of_nothing_takes_tcg():
    assert Probe().engine == "tcg"
