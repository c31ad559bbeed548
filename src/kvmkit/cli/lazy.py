"""Put off the parts of libraries that a run seldom needs, where the library itself imports them all.

Each takes milliseconds of every start of `kvmkit run`. What is put off is imported when somebody uses it, so nobody has
to know; a name that another version of the library does not import is never looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands for a module until something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system looks at
            raise AttributeError(name)
        return getattr(self._load(), name)

    def _load(self) -> ModuleType:
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        __import__(name)
        module = sys.modules[name]
        parent, _, last = name.rpartition(".")
        setattr(sys.modules[parent], last, module)
        return module


def put_off(name: str, *functions: str) -> None:
    """Import the module `name` of a package when it is used. `functions`: what the package takes out of it at once."""
    package = name.partition(".")[0]
    if package in sys.modules or name in sys.modules:
        return
    later = Later(name)
    for function in functions:
        setattr(later, function, _calling(later, function))
    sys.modules[name] = later


def _calling(later: Later, function: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        module = sys.modules.get(later.__name__)
        if module is None or module is later:
            module = later._load()
        return getattr(module, function)(*args, **options)

    return call
