"""Description <-> TOML: only what differs from the defaults is written."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import msgspec

from kvmkit.errors import BadInput
from kvmkit.manager.description import Description


def write_toml(description: Description) -> str:
    """The description as TOML, simple values before tables."""
    return table(_changed(msgspec.to_builtins(description), msgspec.to_builtins(Description())), "")


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _changed(value, defaults[key])
            if value:
                found[key] = value
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            found[key] = [{k: v for k, v in part.items() if v not in ("", None, False, [], ())} for part in value]
        elif value != defaults[key] and value is not None:
            found[key] = value
    return found


def table(values: dict[str, Any], name: str) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if not _is_table(value)]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in values.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            text += f"\n[{path}]\n{table(value, path)}"
        elif _is_table(value):
            text += "".join(f"\n[[{path}]]\n{table(part, path)}" for part in value)
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(part) for part in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def read_toml(text: str, where: str) -> Description:
    """BadInput for what is no TOML, or has a key that a description does not have."""
    try:
        return msgspec.convert(tomllib.loads(text), Strict, strict=True)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise BadInput(f"{where}: {' '.join(str(error).split())}") from None


class Strict(Description, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, as it is read from a file."""
