"""The compiled modules once more, for a fuzzer: by clang, with coverage counters and the address sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TREE = ROOT / "build" / "fuzz" / "lib"
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address -Wno-everything"


def clang() -> str:
    for name in ("clang", *(f"clang-{number}" for number in range(21, 12, -1))):
        found = shutil.which(name)
        if found:
            return found
    sys.exit("fuzzing needs clang: apt-get install clang")


def build() -> Path:
    """Make or renew it (some minutes the first time); the directory to import from."""
    compiler = clang()
    TREE.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": FLAGS}
    options = ["build_ext", "--build-lib", str(TREE), "--build-temp", str(TREE.parent / "objects"), "-j2"]
    subprocess.run([sys.executable, "setup.py", "-q", *options], cwd=ROOT, env=environment, check=True)
    for path in (ROOT / "src" / "kvmkit").rglob("*"):
        if path.suffix not in (".so", ".pyc") and path.is_file():
            target = TREE / path.relative_to(ROOT / "src")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.stat().st_mtime_ns < path.stat().st_mtime_ns:
                shutil.copy2(path, target)
    return TREE


def preload() -> Path:
    """Atheris's libFuzzer and address sanitizer in one library."""
    import atheris

    path = Path(atheris.path()) / "asan_with_fuzzer.so"
    if not path.is_file():
        sys.exit(f"this atheris has no {path.name}: pip install 'atheris>=3'")
    return path
