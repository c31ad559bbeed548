"""`kvmkit secureboot`: the keys in a UEFI variable store, and whether Secure Boot is on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

SUMMARY = VERBS["secureboot"].summary

EPILOG = """\
examples:
  cp /usr/share/OVMF/OVMF_VARS_4M.fd vars.fd
  kvmkit secureboot enroll vars.fd                         Red Hat's and Microsoft's keys, and Secure Boot on
  kvmkit secureboot status vars.fd
  kvmkit secureboot enroll vars.fd --output ms.fd --keys microsoft
  kvmkit secureboot keys mine                              keys of your own, to sign with:
  sbsign --key mine/db.key --cert mine/db.crt --output signed.efi boot.efi
  kvmkit secureboot enroll vars.fd --pk mine/PK.crt --kek mine/KEK.crt --db mine/db.crt
  kvmkit secureboot disable vars.fd                        the keys stay; enable turns it on again
  kvmkit secureboot reset vars.fd                          without keys: in setup mode

FILE is a variable store of edk2's (OVMF_VARS_4M.fd, a whole OVMF image), or the name of a VM, whose store it is.
Without any key given, enroll takes the set redhat. Keys come with the library virt-firmware: pip install virt-firmware.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    topics = parser.add_subparsers(dest="topic", required=True, metavar="WHAT")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return topics.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")

    status = verb("status", "show whether Secure Boot is on, and whose keys there are")
    variables = verb("vars", "list the variables of a store")
    enroll = verb("enroll", "put keys into a store, and turn Secure Boot on")
    changes = (
        enroll,
        verb("enable", "turn Secure Boot on; there have to be keys"),
        verb("disable", "turn Secure Boot off; the keys stay"),
        verb("reset", "remove PK, KEK, db and dbx: setup mode, in which a guest can enrol its own"),
    )
    for one in (status, variables, *changes):
        one.add_argument("file", metavar="FILE", help="a variable store, or a VM's name")
    for one in (status, variables):
        one.add_argument("--json", action="store_true", help="print it as JSON")
    enroll.add_argument("--output", type=Path, metavar="FILE", help="write the result here, and leave FILE as it is")
    enroll.add_argument("--keys", metavar="SET,...", help="redhat, microsoft: sets that virt-firmware carries")
    enroll.add_argument("--pk", type=Path, metavar="CERT", help="a certificate (PEM or DER) as the platform key")
    for database in ("kek", "db"):
        enroll.add_argument(
            f"--{database}", type=Path, action="append", default=[], metavar="CERT", help="the same; may be several"
        )
    enroll.add_argument("--dbx", type=Path, metavar="FILE", help="what may not start: such as DBXUpdate.bin")
    keys = verb("keys", "make keys of your own in DIR: PK, KEK and db, each NAME.key and NAME.crt")
    keys.add_argument("directory", metavar="DIR", type=Path)
    keys.add_argument("--name", default="kvmkit", help="whose they are, for the certificates (default: kvmkit)")


def run(args: argparse.Namespace) -> int:
    topics: dict[str, Callable[[argparse.Namespace], None]] = {
        "status": _status,
        "vars": _vars,
        "enroll": _enroll,
        "keys": _keys,
    }
    topics.get(args.topic, _change)(args)
    return 0


def variables_file(text: str) -> Path:
    """The variable store that is meant: a file, else that of the VM of this name. BadInput: neither is there."""
    path = Path(text)
    if "/" in text or path.exists():
        return path
    from kvmkit.manager import home, own_files

    if text not in home.listing():
        raise BadInput(f"{text}: no such file, and no VM of that name")
    with home.open_home(text) as owner:
        return own_files.variables(owner)


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep the VM whose store that is from starting meanwhile. Raises Busy or BadInput, when one has it."""
    from kvmkit.manager import home
    from kvmkit.manager.own_files import NVRAM
    from kvmkit.secureboot import files

    with ExitStack() as held:
        place = path.resolve()
        directory = place.parent
        if place.name == NVRAM and directory.parent == home.root().resolve() and directory.name in home.listing():
            owner = held.enter_context(home.open_home(directory.name))
            held.enter_context(owner.changing())
            if owner.running():
                raise home.Busy(f"{owner.name} is running, and its firmware has the variables: stop it first")
        held.enter_context(files.locked(path))
        yield


def _status(args: argparse.Namespace) -> None:
    from kvmkit.secureboot import files, guids, state

    path = variables_file(args.file)
    found = state.of(files.read(path, files.LARGEST_IMAGE), str(path))
    if args.json:
        _print_json(
            {
                "secure_boot": found.secure_boot,
                "setup_mode": found.setup_mode,
                **{
                    name: {
                        "certificates": [
                            {"owner": str(one.owner), "subject": _text(one.subject), "sha256": one.sha256}
                            for one in database.certificates
                        ],
                        "hashes": database.hashes,
                    }
                    for name, database in found.databases.items()
                },
            }
        )
        return
    mode = "in setup mode: there is no platform key" if found.setup_mode else ""
    print(f"Secure Boot: {'on' if found.secure_boot else 'off'}{mode and f' ({mode})'}")
    rows = []
    for name, database in found.databases.items():
        for one in database.certificates:
            rows.append((name, guids.name_of(one.owner), one.subject or "no certificate"))
        if database.hashes:
            rows.append((name, "", f"{database.hashes} hash{'es' if database.hashes > 1 else ''}"))
    if rows:
        _print_table((("IN", "OWNER", "WHAT"), *rows))


def _vars(args: argparse.Namespace) -> None:
    from kvmkit.secureboot import files, guids
    from kvmkit.secureboot.varstore import Store

    path = variables_file(args.file)
    store = Store(files.read(path, files.LARGEST_IMAGE), str(path))
    variables = [store.variables[key] for key in sorted(store.variables)]
    if args.json:
        _print_json(
            [
                {
                    "name": _text(one.name),
                    "guid": str(one.guid),
                    "guid_name": guids.NAMES.get(one.guid, ""),
                    "size": len(one.data),
                    "attributes": one.attribute_names(),
                    "time": one.when.isoformat() if one.when else None,
                }
                for one in variables
            ]
        )
        return
    rows = [
        (
            one.name,
            guids.name_of(one.guid),
            str(len(one.data)),
            " ".join(one.attribute_names()),
            f"{one.when:%Y-%m-%d %H:%M}" if one.when else "",
        )
        for one in variables
    ]
    _print_table((("NAME", "GUID", "SIZE", "ATTRIBUTES", "TIME"), *rows))


def _enroll(args: argparse.Namespace) -> None:
    from kvmkit.secureboot import enroll, files, keys

    own = args.pk is not None or args.kek or args.db or args.dbx is not None
    sets = args.keys.split(",") if args.keys is not None else [] if own else ["redhat"]
    chosen = keys.collected(sets, pk=args.pk, kek=args.kek, db=args.db, dbx=args.dbx)
    path = variables_file(args.file)
    target: Path = args.output or path
    with _unused(target):
        changed = enroll.enroll(files.read(path, files.LARGEST_IMAGE), chosen, str(path))
        if target != path and target.exists():
            _is_a_store(target)
        files.replace(target, changed)


def _is_a_store(path: Path) -> None:
    """So that a slip of the hand replaces nothing else. BadInput."""
    from kvmkit.secureboot import files
    from kvmkit.secureboot.varstore import Store

    try:
        Store(files.read(path, files.LARGEST_IMAGE), str(path))
    except BadInput as error:
        raise BadInput(f"--output would replace what is no variable store: {error}") from None


def _change(args: argparse.Namespace) -> None:
    from kvmkit.secureboot import enroll, files

    path = variables_file(args.file)
    change = {"enable": enroll.enable, "disable": enroll.disable, "reset": enroll.reset}[args.topic]
    with _unused(path):
        files.replace(path, change(files.read(path, files.LARGEST_IMAGE), str(path)))


def _keys(args: argparse.Namespace) -> None:
    from kvmkit.secureboot.generate import generate

    for path in generate(args.directory, args.name):
        print(path)


def _print_json(value: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _text(name: str) -> str:
    """Fit for JSON: in UCS-2 half of a pair is a name as well."""
    return name.encode("utf-8", "replace").decode()


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Names are a guest's to choose: control characters in them are shown and not obeyed."""
    shown = [tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
