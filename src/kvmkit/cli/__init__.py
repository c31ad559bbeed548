"""The command line: one file per verb, imported when that verb is used. No logic of its own.

A verb's module offers `SUMMARY`, `configure(parser)` and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NoReturn, Protocol, cast

from kvmkit.errors import BAD_INPUT, GuestFault, KvmkitError

VERBS: dict[str, str] = {
    "run": "run a command, or a shell, in a VM",
    "accel": "show which engine VMs run on here, and why",
    "doctor": "check this host: processor, kernel, /dev/kvm, nesting, huge pages, firmware, tools",
    "host": "set the host up: modules, nesting, huge pages, permissions",
    "guest": "check a guest for virtio, from inside it",
    "cpu": "list CPU models, and what this host can give of them",
    "qemu": "run what QEMU's own command line describes",
    "bench": "measure beside QEMU in one run",
}
MODULES = {verb: f"kvmkit.cli.{verb}" for verb in VERBS}

HELP = """\
usage: kvmkit COMMAND ...

A hypervisor: virtual machines on KVM, or on a software CPU where there is none.

VERBS

examples:
  kvmkit run                     a shell in a Debian VM
  kvmkit run -- uname -a         one command, its output and exit status
  kvmkit doctor                  what this host can do

`kvmkit COMMAND --help` tells more."""

INTERRUPTED = 130
TERMINATED = 143


class Verb(Protocol):
    SUMMARY: str

    def configure(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse, with errors as everything here has them: one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(BAD_INPUT)


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"kvmkit: {text}", file=sys.stderr)


def run(arguments: list[str], started_ns: int = 0) -> int:
    """Run one command line; returns the exit status. Errors of the user's become one line here."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _help(arguments[1:] if arguments and arguments[0] == "help" else [])
    name, *rest = arguments
    if name not in VERBS:
        complain(_unknown(name))
        return BAD_INPUT
    try:
        verb = cast(Verb, importlib.import_module(MODULES[name]))
        parser = Parser(
            prog=f"kvmkit {name}",
            description=verb.SUMMARY[0].upper() + verb.SUMMARY[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.configure(parser)
        before, command = _split(rest) if name == "run" else (rest, None)
        args = parser.parse_args(before)
        args.command = command
        args.started_ns = started_ns
        status = verb.run(args)
        sys.stdout.flush()
        return status
    except GuestFault as fault:
        if fault.report:
            print(fault.report, file=sys.stderr)
        complain(str(fault))
        return fault.exit_status
    except KvmkitError as error:
        complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left: nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Ours, and the guest's command: what stands behind `--`."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, VERBS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no command {name!r}{hint} (see kvmkit --help)"


def _help(topic: list[str]) -> int:
    if topic and topic[0] in VERBS:
        return run([topic[0], "--help"])
    if topic:
        complain(_unknown(topic[0]))
        return BAD_INPUT
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:{width}}{summary}" for name, summary in VERBS.items())
    print(HELP.replace("VERBS", verbs))
    return 0
