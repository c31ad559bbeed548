"""What the KVM test host gets of this checkout."""

from __future__ import annotations

import marshal
import py_compile
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from tests.kvmhost.parts import compiled


def test_what_is_compiled_fits_a_source_without_a_time(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("answer = 42\n")
    header = MAGIC_NUMBER + bytes(8) + source.stat().st_size.to_bytes(4, "little")
    for _ in range(2):  # compiled here, then what this machine has compiled already
        code = compiled(source, source.read_bytes())
        assert code[:16] == header
        found: dict[str, object] = {}
        exec(marshal.loads(code[16:]), found)
        assert found["answer"] == 42
        py_compile.compile(str(source))
