"""`kvmkit image`: the images that VMs are made of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput, HostError

if TYPE_CHECKING:
    from kvmkit.guest.store import Manifest

SUMMARY = VERBS["image"].summary

EPILOG = """\
examples:
  kvmkit image ls
  kvmkit image build web.toml                        then: kvmkit run web
  kvmkit image pull oci:/srv/layout:latest --name app
  kvmkit image import debian-12.qcow2 --cloud-init   then: kvmkit run debian-12
  kvmkit image export debian --format tar root.tar
  kvmkit image rm web

a spec for build:
  base = "debian"
  packages = ["git", "gcc"]
  run = ["useradd -m dev"]
  [files]
  "/etc/motd" = { text = "hello\\n" }
  "/opt/tool" = { path = "tool", mode = "0755" }

More: kvmkit help images, docs/images.md.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    topics = parser.add_subparsers(dest="topic", required=True, metavar="WHAT")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return topics.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")

    ls = verb("ls", "list images")
    ls.add_argument("--quiet", "-q", action="store_true", help="print names alone")
    ls.add_argument("--json", action="store_true", help="print them as JSON")
    rm = verb("rm", "remove images; VMs that were begun with them keep their files")
    rm.add_argument("names", nargs="+", metavar="NAME")
    verb("prune", "remove builds of kvmkit's own images that a newer one has replaced, and what was half made")
    inspect = verb("inspect", "show all that is noted of an image, as JSON")
    inspect.add_argument("image", metavar="NAME")
    inspect.add_argument("--check", action="store_true", help="read all of it, and compare with its checksums")
    build = verb("build", "build an image of a base, packages, files and commands")
    build.add_argument("file", metavar="SPEC.toml")
    imported = verb("import", "make an image of a disk that has a system on it: raw, qcow2, vmdk, vhdx")
    imported.add_argument("path", metavar="PATH", type=Path)
    imported.add_argument("--format", default="", metavar="FORMAT", help="what PATH is (default: as it looks)")
    imported.add_argument("--cloud-init", action="store_true", help="add a seed: a password, and your ssh keys")
    imported.add_argument("--user-data", type=Path, metavar="FILE", help="add a seed with this user-data")
    pull = verb("pull", "make an image of a container image: oci:DIR[:TAG], or what skopeo fetches (docker://...)")
    pull.add_argument("reference", metavar="REF")
    for one in (build, imported, pull):
        one.add_argument("--name", default="", metavar="NAME", help="the image's name (default: what it is made of)")
        one.add_argument("--force", "-f", action="store_true", help="make it anew, in place of one of that name")
    export = verb("export", "write an image's disk to a file")
    export.add_argument("image", metavar="NAME")
    export.add_argument("target", metavar="FILE", type=Path)
    export.add_argument("--format", default="raw", metavar="FORMAT", help="tar, raw or qcow2 (default: raw)")
    export.add_argument("--force", "-f", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> int:
    topics = {
        "ls": _ls,
        "rm": _rm,
        "prune": _prune,
        "inspect": _inspect,
        "build": _build,
        "import": _import,
        "pull": _pull,
        "export": _export,
    }
    return topics[args.topic](args)


def _ls(args: argparse.Namespace) -> int:
    import time

    from kvmkit.cli.ps import size
    from kvmkit.guest import images, library, store

    rows = []
    for name in [*library.BUILT_IN, *library.names()]:
        directory = images.directory_of(name) if name in library.BUILT_IN else library.root() / name
        manifest = store.read(directory)
        rows.append((name, manifest))
    if args.quiet:
        sys.stdout.write("".join(f"{name}\n" for name, manifest in rows if manifest is not None))
        return 0
    if args.json:
        _print_json([_noted(name, manifest) for name, manifest in rows if manifest is not None])
        return 0
    lines = [("NAME", "KIND", "SIZE", "MADE", "OF")]
    for name, manifest in rows:
        if manifest is None:
            lines.append((name, "-", "-", "-", "built on first use"))
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
        total = sum(file.size for file in manifest.files.values())
        lines.append((name, _kind(manifest), size(total), made, manifest.source))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _kind(manifest: Manifest) -> str:
    from kvmkit.guest import library

    if library.DISK in manifest.files:
        return "disk"
    return "root" if library.ROOT_DISK in manifest.files else "initramfs"


def _noted(name: str, manifest: Manifest) -> dict[str, object]:
    import msgspec

    return {"name": name, "kind": _kind(manifest), **msgspec.to_builtins(manifest)}


def _print_json(value: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _rm(args: argparse.Namespace) -> int:
    from kvmkit.guest import library

    for name in args.names:
        library.remove(name)
    return 0


def _prune(args: argparse.Namespace) -> int:
    from kvmkit.guest import images, library

    gone, kept = library.prune(images.current())
    for path in gone:
        print(path)
    if kept:
        raise HostError(f"not all of it could be removed; what is left is in {', '.join(map(str, kept))}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from kvmkit.guest import images, library, store

    if args.image in library.BUILT_IN:
        directory = images.directory_of(args.image)
    else:
        directory = library.directories(args.image)[0]
    manifest = store.read(directory)
    if manifest is None:
        raise BadInput(f"the image {args.image} is not built yet: `kvmkit run {args.image} -- true` builds it")
    if args.check:
        wrong = store.wrong(directory)
        for line in wrong:
            print(line)
        return 1 if wrong else 0
    _print_json({**_noted(args.image, manifest), "directory": str(directory)})
    return 0


def _build(args: argparse.Namespace) -> int:
    from kvmkit.guest.progress import Shown
    from kvmkit.manager import imagebuild, imagespec

    checked = imagespec.read(args.file, args.name)
    with Shown() as progress:
        _manifest, known = imagebuild.build(checked, progress, force=args.force)
    if known and sys.stderr.isatty():
        print("it is there already, made of the same", file=sys.stderr)
    print(checked.name)
    return 0


def _import(args: argparse.Namespace) -> int:
    from kvmkit.guest.progress import Shown
    from kvmkit.manager import imagefiles

    name = args.name or imagefiles.name_of(str(args.path))
    with Shown() as progress:
        _manifest, password = imagefiles.import_disk(
            args.path, name, progress, form=args.format, user_data=args.user_data, cloud=args.cloud_init,
            replace=args.force,
        )  # fmt: skip
    if password:
        print(f"the password of its default user: {password}", file=sys.stderr)
    print(name)
    return 0


def _pull(args: argparse.Namespace) -> int:
    from kvmkit.guest.progress import Shown
    from kvmkit.manager import imagefiles

    name = args.name or imagefiles.name_of(args.reference.removeprefix("oci:").partition(":")[0]
                                           if args.reference.startswith("oci:") else args.reference)  # fmt: skip
    with Shown() as progress:
        imagefiles.pull(args.reference, name, progress, replace=args.force)
    print(name)
    return 0


def _export(args: argparse.Namespace) -> int:
    from kvmkit.guest.progress import Shown
    from kvmkit.manager import imagefiles

    with Shown() as progress:
        imagefiles.export(args.image, args.target, args.format, progress, replace=args.force)
    return 0
