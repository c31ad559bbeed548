"""`kvmkit`, the command. What needs nothing is answered before anything is imported."""

import gc
import sys
import time

STARTED_NS = time.monotonic_ns()


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # before there is a handler that tells it from a mistake of ours
        return 130


def _main(argv: list[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (["--version"], ["-V"]):
        from kvmkit import __version__

        sys.stdout.write(f"kvmkit {__version__}\n")
        return 0
    if arguments[:1] == ["exec"]:
        from kvmkit.cli.quick import attempt

        status = attempt(arguments[1:])
        if status is not None:
            return status
    gc.set_threshold(20_000)  # objects made by importing stay: looking for garbage among them costs a tenth of a start
    from kvmkit.cli.main import run

    return run(arguments, STARTED_NS)


if __name__ == "__main__":
    sys.exit(main())
