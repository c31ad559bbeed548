"""The fuzzer's own process: libFuzzer by atheris, over the instrumented modules. Started by `python -m tests.fuzz`."""

from __future__ import annotations

import os
import sys

import atheris


def main() -> None:
    from .settings import AGAIN, INSIDE, PYTHON_PARTS

    with atheris.instrument_imports(include=list(PYTHON_PARTS), enable_loader_override=False):
        pass
    from .targets import TARGETS

    target = TARGETS[os.environ[INSIDE]]
    target(b"")  # what is made once is made before memory is measured
    atheris.Setup([os.environ[AGAIN], *sys.argv[1:]], target)
    atheris.Fuzz()


main()
