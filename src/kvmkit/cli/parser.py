"""argparse, with what kvmkit promises on top: a mistake is one line, and a mistyped option gets the nearest one."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import NoReturn

from kvmkit.errors import BadInput

if "gettext" in sys.modules:
    import argparse
else:
    # argparse has its messages translated, and the module that does it takes longer to import than argparse itself.
    # There is nothing to translate here: it gets a stand-in, which is gone before anybody looks for the real one.
    untranslated = ModuleType("gettext")
    untranslated.gettext = lambda message: message  # type: ignore[attr-defined]  # as the module has it
    untranslated.ngettext = lambda one, many, n: one if n == 1 else many  # type: ignore[attr-defined]  # the same
    sys.modules["gettext"] = untranslated
    try:
        import argparse
    finally:
        del sys.modules["gettext"]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they were written, options in lines that are not needlessly short."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=112)


class Parser(argparse.ArgumentParser):
    """Raises BadInput where argparse would print a usage and exit."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]  # passed on as they came

    def error(self, message: str) -> NoReturn:
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            first = unknown[1].split(" ", 1)[0]
            message = f"{'no option' if first.startswith('-') else 'unexpected argument'} {first}{self._nearest(first)}"
        required = re.fullmatch(r"the following arguments are required: (.*)", message)
        if required:
            message = f"{required[1]} is missing"
        message = re.sub(r"^argument ([^:]*): ", r"\1: ", message)
        verb = self.prog.split(" ", 2)
        where = f"kvmkit help {verb[1]}" if len(verb) > 1 else "kvmkit help"
        raise BadInput(f"{message} (see `{where}`)")

    def _nearest(self, word: str) -> str:
        return nearest(word.split("=", 1)[0], list(self._option_string_actions))


def nearest(word: str, known: list[str]) -> str:
    """ "; did you mean X?", or nothing."""
    import difflib

    found = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {found[0]}?" if found else ""


def whole_number(text: str) -> int:
    """For `type=`: an int, with a message in the reader's terms."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def seconds(text: str) -> float:
    """For `type=`: a time of more than 0 seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return value


def seconds_or_none(text: str) -> float:
    """The same, and 0 for at once."""
    return 0.0 if text.strip() in ("0", "0.0") else seconds(text)
