"""A short run of a device's benchmark on KVM, and what its report has to hold."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from kvmkit.bench.points import PointsReport


def short_run(topic: str) -> None:
    command = [sys.executable, "-m", "kvmkit", "bench", topic, "--runs", "1", "--seconds", "0.02", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode == 1 and not done.stdout:
        pytest.skip(done.stderr)
    report = msgspec.json.decode(done.stdout, type=PointsReport)
    assert report.failures == []
    assert len(report.points) == 6
    for point in report.points.values():
        (ours,) = point.kvmkit
        assert ours is not None
        assert ours.rate > 0
        assert ours.exits is not None
        assert ours.exits * point.requests < 60, "the set-up's, and none for a request"
