"""Run a fuzzer: python -m tests.fuzz TARGET [--seconds N]. What it finds is in build/fuzz/found."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .build import ROOT, build, preload
from .settings import AGAIN, INSIDE
from .targets import TARGETS, close

CORPUS = Path(__file__).parent / "corpus"
WORK = ROOT / "build" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", metavar="FILE", help="run one input, without the fuzzer")
    parser.add_argument("--keep", action="store_true", help="put the smallest inputs of equal coverage in the corpus")
    parser.add_argument("--no-build", action="store_true", help="the instrumented modules are up to date")
    arguments = parser.parse_args()
    if arguments.replay:
        TARGETS[arguments.target](Path(arguments.replay).read_bytes())
        close()
        return 0
    tree = ROOT / "build" / "fuzz" / "lib" if arguments.no_build else build()
    found = WORK / "found" / arguments.target
    grown = WORK / "corpus" / arguments.target
    kept = CORPUS / arguments.target
    for directory in (found, grown, kept):
        directory.mkdir(parents=True, exist_ok=True)
    again = WORK / "again"
    again.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.inside "$@"\n')
    again.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}",
        "LD_PRELOAD": str(preload()),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        INSIDE: arguments.target,
        AGAIN: str(again),
    }
    command = [sys.executable, "-m", "tests.fuzz.inside"]
    options = ["-max_len=512", "-timeout=20", "-rss_limit_mb=4096", "-verbosity=1", f"-artifact_prefix={found}/"]
    if arguments.keep:
        with tempfile.TemporaryDirectory() as smaller:
            merged = [*command, "-merge=1", *options, smaller, str(grown), str(kept)]
            status = subprocess.run(merged, env=environment, cwd=ROOT, check=False).returncode
            _keep(Path(smaller), kept)
        return status
    timed = [*command, f"-max_total_time={arguments.seconds}", "-print_final_stats=1", *options, str(grown), str(kept)]
    return subprocess.run(timed, env=environment, cwd=ROOT, check=False).returncode


MOST_KEPT = 40


def _keep(chosen: Path, kept: Path) -> None:
    """Inputs of all sizes, up to MOST_KEPT: the corpus in the repository is for a quick look. A `found-*` stays."""
    found = sorted(chosen.iterdir(), key=lambda path: path.stat().st_size)
    if not found:
        sys.exit("nothing to keep: run the fuzzer first")
    for path in kept.glob("[0-9]*"):
        path.unlink()
    for number, path in enumerate(found[:: -(-len(found) // MOST_KEPT)]):
        (kept / f"{number:02}").write_bytes(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
