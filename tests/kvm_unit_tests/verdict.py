"""Run one test on one hypervisor and say what it concluded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass, field

PASSED, FAILED, SKIPPED, ABORTED = 1, 3, 77, 127
"""Exit statuses: (code << 1) | 1 of the codes 0, 1, 38 and 63 that a test writes to the debug exit port."""

REPORT = re.compile(r"^\s*(PASS|FAIL|XPASS|XFAIL|SKIP): (.*?)\s*$", re.MULTILINE)


@dataclass(slots=True)
class Verdict:
    """`word` is PASS, FAIL, SKIP, TIMEOUT, ABORT (an exception the test did not expect), or ERROR: the hypervisor ended
    without the test's word, and `note` says how.
    """

    word: str
    note: str = ""
    passed: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = self.passed + len(self.failures)
        return f"{self.word} {self.passed}/{total}" if total else self.word


def run(command: list[str], seconds: float) -> Verdict:
    """Run `command`, whose standard output is the guest's serial port. Its processes are gone afterwards."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
        late = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        late = True
    return judge(out.decode(errors="replace"), err.decode(errors="replace"), process.returncode, late)


def judge(out: str, err: str, status: int, late: bool) -> Verdict:
    reports = REPORT.findall(out)
    failures = [text for word, text in reports if word in ("FAIL", "XPASS")]
    counts = {"passed": sum(word == "PASS" for word, _ in reports), "failures": failures}
    if late:
        return Verdict("TIMEOUT", last_line(out), **counts)
    if status == SKIPPED or (status == PASSED and reports and all(word == "SKIP" for word, _ in reports)):
        return Verdict("SKIP", **counts)
    # A hypervisor's own errors have exit status 1 too; a test that ran has said something.
    if status == PASSED and out.strip() and not failures:
        return Verdict("PASS", **counts)
    if status in (PASSED, FAILED) and out.strip():
        return Verdict("FAIL", **counts)
    if status == ABORTED:
        return Verdict("ABORT", last_line(out), **counts)
    return Verdict("ERROR", f"status {status}: {last_line(err) or last_line(out)}", **counts)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:100] if lines else ""
