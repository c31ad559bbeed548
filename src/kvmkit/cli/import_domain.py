"""`kvmkit import`: a domain of libvirt's as a VM of kvmkit's."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.main import say
from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

SUMMARY = VERBS["import"].summary

EPILOG = """\
examples:
  virsh dumpxml web > web.xml
  kvmkit import web.xml -o web.toml     then: kvmkit run web.toml, or kvmkit create web.toml
  kvmkit import web.xml                 print it

What the domain has and a VM of kvmkit's does not, or has otherwise, is listed on standard error; the rest is written.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE.xml", help="libvirt's domain XML; - is standard input")
    parser.add_argument("--output", "-o", metavar="FILE", help="write here instead of standard output")
    parser.add_argument("--force", "-f", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager.fit import differing, lacking
    from kvmkit.manager.libvirt import read_domain
    from kvmkit.manager.translate import to_spec, write_spec

    found = read_domain(read(args.file), args.file)
    text = write_spec(to_spec(found.description))
    for line in found.unlisted:
        say(f"left out: {line}")
    for line in lacking(found.description):
        say(f"left out: {line}")
    for line in differing(found.description):
        say(f"differs: {line}")
    write(text, args.output, args.force)
    return 0


def read(name: str) -> bytes:
    """A file, or standard input for -."""
    try:
        if name == "-":
            return sys.stdin.buffer.read()
        with open(name, "rb") as file:
            return file.read(1 << 23)
    except OSError as error:
        raise BadInput(f"can't read {name}: {error.strerror}") from None


def write(text: str, output: str | None, force: bool) -> None:
    """To the file, which is not one that is there already, or to standard output."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with open(output, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise BadInput(f"{output}: is there already; --force writes over it") from None
    except OSError as error:
        raise BadInput(f"can't write {output}: {error.strerror}") from None
