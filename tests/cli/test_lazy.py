"""What is put off is not imported on the way, and is there when it is used."""

import subprocess
import sys

SCRIPT = """
import sys
from kvmkit.cli.main import run

run(["accel", "--nothing"])
assert "gettext" not in sys.modules or hasattr(sys.modules["gettext"], "find")
import gettext
assert gettext.find("nothing") is None

import msgspec
assert type(msgspec.inspect).__name__ == "Later"
assert msgspec.toml.decode(b"a = 1") == {"a": 1}
assert isinstance(msgspec.inspect.type_info(int), msgspec.inspect.IntType)
assert msgspec.json.schema(int) == {"type": "integer"}
assert type(msgspec.inspect).__name__ == type(msgspec.toml).__name__ == "module"
import msgspec.yaml
assert callable(msgspec.yaml.decode)
"""


def test_what_is_put_off_works_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_was_imported_before_stays() -> None:
    script = "import msgspec; from kvmkit.cli.main import run; run(['--help']); print(type(msgspec.inspect).__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("\nmodule\n")
