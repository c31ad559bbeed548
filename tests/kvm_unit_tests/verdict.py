"""What a test's output and exit status say."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

DEBUG_EXIT = 0xF4
SUMMARY = re.compile(r"SUMMARY: (\d+) tests(?:, (\d+) unexpected failures)?")
SKIPPED_ALL = re.compile(r"SUMMARY: (\d+) tests, \1 skipped")
SKIP_STATUS = 77
"""What a test reports when it can't run at all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`word` is PASS, FAIL, SKIP, TIMEOUT or CRASH; `failures` are the lines of what failed."""

    word: str
    tests: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        return f"FAIL {len(self.failures)}" if self.word == "FAIL" and self.failures else self.word


def judge(status: int | None, output: str) -> Verdict:
    """`status` is the machine's; None: the time was over. A test ends it with `(code << 1) | 1`."""
    lines = [line.strip() for line in output.splitlines()]
    # A failing line may be repeated in what the machine's monitor shows of the end: count each once.
    failures = tuple(dict.fromkeys(line for line in lines if line.startswith("FAIL")))
    passed = sum(line.startswith("PASS") for line in lines)
    summary = SUMMARY.search(output)
    tests = int(summary[1]) if summary else passed + len(failures)
    if status is None:
        word = "TIMEOUT"
    elif status == (SKIP_STATUS << 1 | 1) & 0xFF or SKIPPED_ALL.search(output):
        word = "SKIP"
    elif status == 1 and not failures and (summary or "Unhandled" not in output):
        word = "PASS"
    elif summary or (status & 1 and status > 1):
        word = "FAIL"
    else:
        word = "CRASH"
    return Verdict(word, tests, failures)


def run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status (None: killed after `seconds`) and everything it wrote."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            status = None
    return status, out.decode(errors="replace")
