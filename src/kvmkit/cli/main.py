"""From arguments to an exit status: find the verb, run it, and turn whatever ends it into a line and a status."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from types import FrameType, ModuleType

from kvmkit.cli.lazy import put_off
from kvmkit.cli.parser import Parser, nearest
from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput, GuestFault, KvmkitError

SIGNALLED = 128

# What the host ran out of, rather than a mistake of ours.
_HOST_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN)
IMPORT_SECONDS = 0.002
"""After which a signal that came in an import is looked at again."""


def run(arguments: list[str], started_ns: int = 0) -> int:
    """Run `kvmkit ARGUMENTS`, begun at `started_ns` of the monotonic clock; returns the exit status.

    What it raises, besides SystemExit, is a mistake in kvmkit.
    """
    put_off("msgspec._json_schema", "schema", "schema_components")
    for part in "inspect", "toml", "yaml":
        put_off(f"msgspec.{part}")
    _open_standard_descriptors()
    _end_on_signals()
    try:
        status = _dispatch(arguments, started_ns)
        sys.stdout.flush()
        return status
    except KvmkitError as error:
        if isinstance(error, GuestFault) and error.report:
            print(error.report, file=sys.stderr)
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        _forget_stdout()
        return SIGNALLED + signal.SIGPIPE
    except MemoryError:
        say("this host has too little memory for that")
        return 1
    except OSError as error:
        if error.errno not in _HOST_ERRNOS:
            raise
        _forget_stdout()
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # of `_unwind`: it ended without that


def say(text: str) -> None:
    """One line on standard error. Control characters, which may come from a file's name, are shown and not obeyed."""
    line = "".join(c if c.isprintable() else "?" if "\udc80" <= c <= "\udcff" else f"\\x{ord(c):02x}" for c in text)
    try:
        print(f"kvmkit: {line}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody listens


def parser_of(verb: str) -> Parser:
    """The argument parser of a verb. Raises BadInput when there is no such verb."""
    module = _module(verb)
    parser = Parser(prog=f"kvmkit {verb}", description=getattr(module, "DESCRIPTION", _sentence(module.SUMMARY)))
    module.configure(parser)
    return parser


def _dispatch(arguments: list[str], started_ns: int) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["help"]
    verb, *rest = arguments
    if verb == "--version":
        raise BadInput("--version goes alone: kvmkit --version")
    if verb.startswith("-"):
        raise BadInput(f"no option {verb} before a verb; options come after it (see `kvmkit help`)")
    command: list[str] | None = None
    if getattr(_module(verb), "TAKES_COMMAND", False) and "--" in rest:
        split = rest.index("--")
        rest, command = rest[:split], rest[split + 1 :]
        if not command:
            raise BadInput(f"no command after -- (see `kvmkit help {verb}`)")
    args = parser_of(verb).parse_args(rest)
    args.command, args.started_ns = command, started_ns
    return int(_module(verb).run(args))


def _module(verb: str) -> ModuleType:
    known = VERBS.get(verb)
    if known is None:
        raise BadInput(f"no verb {verb!r}{nearest(verb, list(VERBS))} (see `kvmkit help`)")
    return importlib.import_module(known.module)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _open_standard_descriptors() -> None:
    """A descriptor 0, 1 or 2 that is closed would be taken by the next file opened, and written to."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP unwind the stack once, so that what cleans up runs; a second one ends it at once.

    One that is ignored (nohup, a background job) stays so.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        _unwind(KeyboardInterrupt(), frame)

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        _unwind(SystemExit(SIGNALLED + number), frame)

    for number, handler in (signal.SIGINT, interrupt), (signal.SIGTERM, terminate), (signal.SIGHUP, terminate):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _unwind(error: BaseException, frame: FrameType | None) -> None:
    """Raise `error`; in a moment, if something is being imported: compiled code that imports may take for granted that
    this succeeds, and crash, as msgspec's does."""
    inner = frame
    while inner is not None:
        if inner.f_globals.get("__name__") == "importlib._bootstrap":
            signal.signal(signal.SIGALRM, lambda number, frame: _unwind(error, frame))
            signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)
            return
        inner = inner.f_back
    raise error


def _forget_stdout() -> None:
    """Python flushes at its end, which would fail once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
    finally:
        os.close(null)
