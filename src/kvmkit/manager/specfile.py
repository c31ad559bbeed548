"""A VM's spec from a TOML or JSON file. What is wrong in it is told with its key and its line."""

from __future__ import annotations

import re
import tomllib
from typing import Any, TypeVar

import msgspec

from kvmkit.errors import BadInput
from kvmkit.manager.spec import VmSpec

LARGEST = 1 << 20
T = TypeVar("T", bound=msgspec.Struct)
_PATH = re.compile(r"(.*?)(?: - at `(\$[^`]*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_KEY = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_PAIR = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)")


def read_spec(name: str) -> VmSpec:
    """A VM's spec in a file whose name ends in .toml or .json. BadInput: `FILE:LINE: KEY: what is wrong`."""
    return read_file(name, VmSpec)[1]


def read_file(name: str, kind: type[T]) -> tuple[str, T]:
    """A spec of that kind, and the text of the file. BadInput as in `read_spec`."""
    try:
        with open(name, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise BadInput(f"can't read {name}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise BadInput(f"{name}: is larger than a spec can be")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{name}:{line}: is not UTF-8") from None
    return text, _json(text, name, kind) if name.endswith(".json") else _toml(text, name, kind)


def _toml(text: str, name: str, kind: type[T]) -> T:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _TOML_LINE.search(message)
        line = found[1] if found else text.count("\n") + 1
        raise BadInput(f"{name}:{line}: no TOML: {_TOML_LINE.sub('', message)}") from None
    except RecursionError:
        raise BadInput(f"{name}: is nested too deeply") from None
    return _convert(values, text, name, kind)


def _json(text: str, name: str, kind: type[T]) -> T:
    try:
        values = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"{name}: {error}") from None
    return _convert(values, text, name, kind)


def _convert(values: Any, text: str, name: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        match = _PATH.fullmatch(str(error))
        assert match is not None
        message, path = match[1], match[2] or "$"
        keys = [key for key in re.split(r"[.\[\]]+", path.removeprefix("$")) if key and key != "..."]
        unknown = _UNKNOWN.match(message)
        if unknown is not None:
            keys.append(unknown[1])
            message = f"there is no such key{_nearest(unknown[1], kind)}"
        line = line_of(text, keys) if name.endswith(".toml") else _json_line(text, keys)
        where = f"{name}:{line}" if line else name
        what = ".".join(key for key in keys if not key.isdigit())
        raise BadInput(f"{where}: {what}{': ' if what else ''}{message[:1].lower()}{message[1:]}") from None


def _nearest(key: str, kind: type[msgspec.Struct]) -> str:
    import difflib

    found = difflib.get_close_matches(key, [field.name for field in msgspec.structs.fields(kind)], 1, 0.6)
    return f"; did you mean {found[0]}?" if found else " (see `kvmkit schema`)"


def line_of(text: str, keys: list[str]) -> int:
    """The line of a TOML text where the value of `keys` begins; numbers in it count the tables of an array. 0: none.

    It looks at headers and `key =` only, in a text that is known to be TOML.
    """
    table: list[str] = []
    counts: dict[str, int] = {}
    best, best_length = 0, 0
    wanted = list(keys)
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        if header is not None and "=" not in line.partition("]")[0]:
            table = _split(header[2])
            if header[1] == "[[":
                name = ".".join(table)
                counts[name] = counts.get(name, -1) + 1
                table = [*table, str(counts[name])]
            found = table
        else:
            pair = _PAIR.match(line)
            if pair is None:
                continue
            found = [*table, *_split(pair[1])]
        if found == wanted[: len(found)] and len(found) > best_length:
            best, best_length = number, len(found)
    return best


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _json_line(text: str, keys: list[str]) -> int:
    names = [key for key in keys if not key.isdigit()]
    at = 0
    for name in names:
        found = text.find(f'"{name}"', at)
        if found < 0:
            return 0
        at = found
    return text.count("\n", 0, at) + 1 if names else 0
