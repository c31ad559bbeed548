"""The fuzzer's own process: libFuzzer by atheris, over the instrumented modules. Started by `python -m tests.fuzz`."""

from __future__ import annotations

import importlib
import os
import sys

import atheris

from .settings import AGAIN, INSIDE, INSTRUMENTED


def main() -> None:
    with atheris.instrument_imports(include=["kvmkit"], enable_loader_override=False):
        for name in INSTRUMENTED:
            importlib.import_module(name)
    from .targets import TARGETS

    target = TARGETS[os.environ[INSIDE]]
    target(b"")  # what is made once is made before memory is measured
    atheris.Setup([os.environ[AGAIN], *sys.argv[1:]], target)
    atheris.Fuzz()


main()
