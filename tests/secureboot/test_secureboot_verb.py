"""`kvmkit secureboot` as a user calls it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.calling import Done, call, environment, is_one_line

from kvmkit.manager import home
from kvmkit.manager.home import Home
from kvmkit.manager.record import Record


@pytest.fixture
def file(empty: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "vars.fd"
    path.write_bytes(empty)
    return path


def secureboot(*words: str | Path) -> Done:
    return call("secureboot", *map(str, words))


def done(*words: str | Path) -> str:
    found = secureboot(*words)
    assert (found.returncode, found.stderr) == (0, ""), found
    return found.stdout


def test_a_store_through_its_life(file: Path, empty: bytes) -> None:
    assert done("status", file) == "Secure Boot: off (in setup mode: there is no platform key)\n"
    assert done("enroll", file) == ""
    lines = done("status", file).splitlines()
    assert lines[0] == "Secure Boot: on"
    assert "PK   OvmfEnrollDefaultKeys  Red Hat Secure Boot (PK/KEK key 1)" in lines
    assert lines[-1].split() == ["dbx", "1", "hash"]
    done("disable", file)
    assert done("status", file).startswith("Secure Boot: off\n")
    done("enable", file)
    told = json.loads(done("status", file, "--json"))
    assert (told["secure_boot"], told["setup_mode"], told["dbx"]["hashes"]) == (True, False, 1)
    assert [one["subject"] for one in told["PK"]["certificates"]] == ["Red Hat Secure Boot (PK/KEK key 1)"]
    done("reset", file)
    assert file.read_bytes() == empty


def test_vars(enrolled: bytes, file: Path) -> None:
    file.write_bytes(enrolled)
    told = {one["name"]: one for one in json.loads(done("vars", file, "--json"))}
    assert told["PK"]["attributes"] == ["NV", "BS", "RT", "AT"]
    assert (told["Lang"]["size"], told["Lang"]["time"]) == (4, None)
    assert told["PK"]["time"].endswith("+00:00")
    shown = done("vars", file)
    assert shown.splitlines()[0].split() == ["NAME", "GUID", "SIZE", "ATTRIBUTES", "TIME"]
    assert len(shown.splitlines()) == len(told) + 1


def test_output_leaves_the_file(file: Path, empty: bytes, tmp_path: Path) -> None:
    other = tmp_path / "other.fd"
    done("enroll", file, "--output", other, "--keys", "microsoft")
    assert file.read_bytes() == empty
    assert "Windows OEM Devices PK" in done("status", other)
    done("enroll", file, "--output", other)  # it may be made anew
    assert "Red Hat Secure Boot" in done("status", other)
    (tmp_path / "letter").write_text("dear")
    assert is_one_line(secureboot("enroll", file, "--output", tmp_path / "letter"))
    assert (tmp_path / "letter").read_text() == "dear"


def test_mode_and_link_are_kept_and_nothing_is_left_beside(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "link.fd"
    link.symlink_to(file)
    done("enroll", link)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.fd", "vars.fd"]


def test_own_keys_are_made_and_enrolled(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert done("keys", own, "--name", "me").split() == [
        str(own / f"{n}.{e}") for n in ("PK", "KEK", "db") for e in ("key", "crt")
    ]
    assert is_one_line(secureboot("keys", own))
    done("enroll", file, "--pk", own / "PK.crt", "--kek", own / "KEK.crt", "--db", own / "db.crt")
    lines = [line.split(maxsplit=2) for line in done("status", file).splitlines()[2:5]]
    assert lines == [["PK", "kvmkit", "me PK"], ["KEK", "kvmkit", "me KEK"], ["db", "kvmkit", "me db"]]


@pytest.mark.parametrize(
    "words",
    [
        ["status", "nothing.fd"],
        ["status", "/nothing.fd"],
        ["status", "letter"],
        ["enroll", "letter"],
        ["enroll", "vars.fd", "--keys", "debian"],
        ["enroll", "vars.fd", "--db", "letter"],
        ["enroll", "vars.fd", "--dbx", "letter"],
        ["enroll", "vars.fd", "--keys", ""],
        ["enable", "vars.fd"],
        ["status"],
        ["nothing", "vars.fd"],
    ],
)
def test_mistakes_are_a_line_and_change_nothing(file: Path, tmp_path: Path, words: list[str], empty: bytes) -> None:
    (tmp_path / "letter").write_text("dear")
    assert is_one_line(call("secureboot", *words, cwd=tmp_path))
    assert file.read_bytes() == empty


def test_a_directory_that_can_not_be_written(file: Path, tmp_path: Path, empty: bytes) -> None:
    assert is_one_line(secureboot("enroll", file, "--output", tmp_path / "nowhere" / "vars.fd"), status=1)


def test_without_virt_firmware_it_says_what_to_install(file: Path, tmp_path: Path) -> None:
    """A package of that name that is none stands for its absence."""
    for name in "virt", "cryptography":
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError")
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path / 'hidden'}{os.pathsep}{env['PYTHONPATH']}"
    without = call("secureboot", "enroll", str(file), env=env)
    assert is_one_line(without, status=1)
    assert "pip install virt-firmware" in without.stderr
    for words in ["vars", str(file)], ["disable", str(file)], ["reset", str(file)]:  # need no keys
        assert call("secureboot", *words, env=env).returncode == 0


# ---- the store of a VM ----


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A VM of that name with UEFI, which never ran."""
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "home"))
    with home.create("web", b'{"firmware": "uefi"}', Record()) as made:
        yield made


def test_a_vm_s_name_is_its_store_which_may_be_filled_before_its_first_start(web: Home, empty: bytes) -> None:
    assert done("status", "web").startswith("Secure Boot: off (in setup mode")
    assert (web.path / "nvram.fd").read_bytes() == empty
    done("enroll", "web")
    assert done("status", "web").startswith("Secure Boot: on")
    assert is_one_line(secureboot("status", "wob"))


def test_a_vm_s_own_choice_of_a_store(web: Home, empty: bytes, enrolled: bytes, tmp_path: Path) -> None:
    """--secure-boot and --nvram, as they are in its spec."""
    with home.create("signed", b'{"firmware": "uefi", "secure_boot": true}', Record()):
        assert "Debian" in done("status", "signed")
    elsewhere = tmp_path / "elsewhere.fd"
    with home.create("away", json.dumps({"firmware": "uefi", "nvram": str(elsewhere)}).encode(), Record()):
        done("enroll", "away", "--keys", "microsoft")
        assert "Microsoft" in done("status", elsewhere)


def test_a_vm_without_uefi_has_no_store(web: Home) -> None:
    with home.create("plain", b"{}", Record()):
        refused = secureboot("status", "plain")
    assert is_one_line(refused)
    assert "--firmware uefi" in refused.stderr


def test_a_file_of_that_name_comes_first(web: Home, file: Path, tmp_path: Path, empty: bytes) -> None:
    (web.path / "nvram.fd").write_bytes(empty)
    file.rename(tmp_path / "web")
    assert call("secureboot", "enroll", "web", cwd=tmp_path).returncode == 0
    assert (web.path / "nvram.fd").read_bytes() == empty


@pytest.mark.parametrize("by", ["name", "path", "link"])
@pytest.mark.parametrize("verb", ["enroll", "enable", "disable", "reset"])
def test_the_store_of_a_vm_that_runs_is_left_alone(
    web: Home, enrolled: bytes, tmp_path: Path, by: str, verb: str
) -> None:
    store = web.path / "nvram.fd"
    store.write_bytes(enrolled)
    (tmp_path / "link").symlink_to(store)
    given = {"name": "web", "path": str(store), "link": str(tmp_path / "link")}[by]
    web.claim()
    refused = secureboot(verb, given)
    assert is_one_line(refused, status=1)
    assert "web is running" in refused.stderr
    assert store.read_bytes() == enrolled
    done("status", given)


def test_a_store_that_a_machine_has_open_is_left_alone(file: Path, empty: bytes, tmp_path: Path) -> None:
    """Wherever it lies: a machine locks its store."""
    with file.open("rb") as had:
        fcntl.flock(had, fcntl.LOCK_EX)
        for words in ["enroll", file], ["reset", file], ["enroll", file, "--output", file]:
            assert is_one_line(secureboot(*words))
        done("enroll", file, "--output", tmp_path / "other.fd")
    assert file.read_bytes() == empty
