"""Where `kvmkit` and `python -m kvmkit` begin. Nothing is imported before it is known to be needed."""

import sys


def main() -> int:
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from kvmkit import __version__

        sys.stdout.write(f"kvmkit {__version__}\n")
        return 0
    from kvmkit.cli.main import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
