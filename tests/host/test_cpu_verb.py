"""`kvmkit cpu`: models and what this host's KVM can give of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="needs a /dev/kvm that opens")


def test_every_model_is_listed(kvmkit: Run) -> None:
    from kvmkit.accel.cpuid import MODELS

    done = kvmkit("cpu", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(json.loads(done.stdout)["models"]) == list(MODELS)
    assert all(name in kvmkit("cpu", "list").stdout for name in MODELS)


@needs_kvm
def test_show_follows_the_changes(kvmkit: Run) -> None:
    plain = json.loads(kvmkit("cpu", "show", "host", "--json").stdout)["engines"]
    less = json.loads(kvmkit("cpu", "show", "host,-sse2", "--json").stdout)["engines"]
    for engine in ("kvm", "tcg"):
        assert set(plain[engine]["features"]) - set(less[engine]["features"]) == {"sse2"}
    assert "sse4.2" in kvmkit("cpu", "show", "x86-64-v2").stdout


@needs_kvm
@pytest.mark.parametrize("model", ["486", "host,+warp", "host,sse3"])
def test_what_there_is_not_is_refused(kvmkit: Run, model: str) -> None:
    done = kvmkit("cpu", "show", model)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone who may not open /dev/kvm")
def test_list_without_kvm_names_the_models(kvmkit: Run) -> None:
    done = kvmkit("cpu", "list", user=65534)
    if not os.path.exists("/dev/kvm") or os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("everyone may open /dev/kvm here")
    assert done.returncode == 0
    assert "not known" in done.stdout


def test_what_the_software_cpu_lacks_of_a_model_is_named(kvmkit: Run) -> None:
    done = kvmkit("cpu", "show", "Haswell", "--accel", "tcg", "--json")
    told = json.loads(done.stdout)["engines"]["tcg"]
    assert {"avx", "avx2", "fma"} <= set(told["missing"])
    assert {"sse4.2", "bmi2", "x2apic"} <= set(told["features"])
    assert kvmkit("cpu", "show", "host,+avx512f", "--accel", "tcg").returncode == 2
