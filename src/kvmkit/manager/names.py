"""Names of VMs: what may be one, and which was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvmkit.errors import BadInput

LONGEST = 63
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)


def check(name: str) -> str:
    """`name` itself. BadInput when it can't be a VM's: it is to be a file's name and a word in a shell."""
    if _NAME.fullmatch(name) is None:
        raise BadInput(
            f"{name!r} can't be the name of a VM: give up to {LONGEST} letters, digits, '-', '_' and '.', "
            "a letter or digit first"
        )
    return name


def unknown(name: str, known: Iterable[str]) -> BadInput:
    """The error for a VM that is not there, with the one that may have been meant."""
    import difflib

    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return BadInput(f"no VM {name!r}{f'; did you mean {found[0]}?' if found else ''} (see `kvmkit ps -a`)")
