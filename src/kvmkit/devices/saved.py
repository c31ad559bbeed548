"""Checking a saved state before a device takes it: the file it came from may be anyone's."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from kvmkit.errors import BadInput

T = TypeVar("T", bound=msgspec.Struct)


def checked(state: object, form: type[T], device: str) -> T:
    """`state` (a `form`, or what JSON makes of one) as a `form`. Raises BadInput with the field that is wrong."""
    try:
        return msgspec.convert(msgspec.to_builtins(state, builtin_types=(bytes,)), form)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadInput(f"saved state of {device}: {error}") from error
