"""Build an image: its files, packages and commands are put on a layer above its base, in a VM; both are then joined.

The VM has two disks beside its root disk: /dev/vda takes what came of it, /dev/vdb brings what it is made of, both as
tar archives. Packages come from this machine's apt, which checks their signatures; the VM needs no network for them.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path

import kvmkit
from kvmkit.errors import GuestFault, KvmkitError
from kvmkit.guest import images, layer, library, rootdisk, store
from kvmkit.guest.apt import Apt
from kvmkit.guest.disk import archive, erofs, erofs_read
from kvmkit.guest.disk.tree import Node, Tree
from kvmkit.guest.progress import Progress
from kvmkit.guest.store import Manifest
from kvmkit.machine.spec import parse_size
from kvmkit.manager.imagespec import Checked
from kvmkit.paths import program

RECIPE = "1"
DEBS = "var/cache/kvmkit"
MARK = "kvmkit-build-step "
LINES = 20
"""Of what a failing command said, that are told."""

_SCRIPT = """\
step() { echo "@MARK@$1"; }
fail() { sync; exit 90; }
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
cd /root
step 0
tar -xpf /dev/vdb -C / || fail
step 1
if [ -d /@DEBS@ ]; then
	printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
	dpkg --force-confold --unpack /@DEBS@/*.deb && dpkg --force-confold --configure -a || fail
	rm -rf /@DEBS@ /usr/sbin/policy-rc.d
fi
@COMMANDS@
step @LAST@
sync
mkdir -p /run/kvmkit-layer
for disk in /sys/block/vd*; do
	[ "$(cat "$disk/serial")" != kvmkit-layer ] || mount "/dev/${disk##*/}" /run/kvmkit-layer || fail
done
tar --xattrs --xattrs-include='*' --numeric-owner -C /run/kvmkit-layer/upper -cf - . 2>/run/kvmkit-tar |
	dd of=/dev/vda bs=1M iflag=fullblock conv=fsync 2>/run/kvmkit-dd || fail
umount /run/kvmkit-layer
"""


def build(checked: Checked, progress: Progress, *, force: bool = False) -> tuple[Manifest, bool]:
    """The image, and whether it was there already, made of the same. GuestFault: a command failed; its last words."""
    base = images.ensure(checked.spec.base, progress)
    if base.root is None:
        raise KvmkitError(f"the image {checked.spec.base} has no root disk to build on")
    noted = store.read(base.root.parent)
    key = checked.key(f"{RECIPE} {noted.files[library.ROOT_DISK].sha256 if noted else ''}")
    directory = library.root() / checked.name
    known = store.load(directory, library.needed(directory))
    if known is not None and known.key == key and not force:
        return known, True

    def fill(work: Path, progress: Progress) -> Manifest:
        return _fill(checked, base, key, work, progress)

    return library.make(checked.name, fill, progress, replace=force or (known is not None and bool(known.key))), False


def _fill(checked: Checked, base: images.GuestImage, key: str, work: Path, progress: Progress) -> Manifest:
    assert base.root is not None
    spec = checked.spec
    with ExitStack() as held:
        tree = erofs_read.read(held.enter_context(base.root.open("rb")))
        debs = _download(spec.packages, tree, work, progress) if spec.packages else []
        _write_parts(checked.archive, debs, work / "in.tar")
        with (work / "out.tar").open("wb") as out:
            out.truncate(parse_size(str(spec.root_size), "root_size", least=layer.SMALLEST))
        _run(checked, work, progress)
        progress.step("joining it with its base")
        upper = held.enter_context((work / "out.tar").open("rb"))
        merge(tree, upper)
        rootdisk.clean(tree)
        with (work / "image" / library.ROOT_DISK).open("w+b") as disk:
            erofs.write(tree, disk)
        packages = rootdisk.installed(tree)
    for file in (base.kernel, base.initrd):
        layer.copy_sparse(file, work / "image" / file.name)
    noted = store.read(base.root.parent) or Manifest()
    return Manifest(
        release=base.release, append=base.append, packages=packages, source=spec.base, key=key,
        command=noted.command, env=noted.env, cwd=noted.cwd, user=noted.user,
    )  # fmt: skip


def _download(packages: tuple[str, ...], tree: Tree, work: Path, progress: Progress) -> list[Path]:
    """The packages and what they need beside what the tree has."""
    status = tree.get(b"var/lib/dpkg/status")
    if status is None:
        raise KvmkitError("packages: its base is no Debian: it has no /var/lib/dpkg/status")
    apt = Apt(work / "apt", progress, installed=status.contents())
    apt.update()
    return apt.download_with_needs(packages)


def _write_parts(files: bytes, debs: list[Path], target: Path) -> None:
    """One archive of both, padded to what a disk can be."""
    with target.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        with tarfile.open(fileobj=io.BytesIO(files)) as given:
            for member in given:
                tar.addfile(member, given.extractfile(member) if member.isreg() else None)
        for deb in debs:
            member = tarfile.TarInfo(f"{DEBS}/{deb.name}")
            member.size, member.mode = deb.stat().st_size, 0o644
            with deb.open("rb") as file:
                tar.addfile(member, file)


def _run(checked: Checked, work: Path, progress: Progress) -> None:
    """Run it all in a VM, which goes with this process. GuestFault: something in it failed."""
    commands = checked.spec.run
    each = "step {}\nsh -c {} </dev/null || fail"
    lines = [each.format(number, shlex.quote(command)) for number, command in enumerate(commands, 2)]
    script = _SCRIPT.replace("@MARK@", MARK).replace("@DEBS@", DEBS).replace("@COMMANDS@", "\n".join(lines))
    script = script.replace("@LAST@", str(len(commands) + 2))
    texts = ["putting files in place", "installing packages"]
    texts += [f"running {' '.join(command.split())}" for command in commands]
    texts.append("reading what was changed")
    watched = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [*watched, *program(), "run", checked.spec.base, "--rm", "--plain"]
    command += ["--memory", str(checked.spec.memory), "--root-size", str(checked.spec.root_size)]
    for name, readonly in ("out.tar", ""), ("in.tar", ",ro"):
        command += ["--disk", str(work / name).replace(",", ",,") + readonly]
    if checked.spec.timeout is not None:
        command += ["--timeout", f"{checked.spec.timeout:g}"]
    progress.step("starting a VM")
    source = os.pathsep.join([str(Path(kvmkit.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [*command, "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, errors="replace", env={**os.environ, "PYTHONPATH": source}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said: list[str] = []
    at = -1
    try:
        for line in process.stdout:
            if line.startswith(MARK) and line[len(MARK) :].strip().isdigit():
                at, said = min(int(line[len(MARK) :]), len(texts) - 1), []
                progress.step(texts[at])
                progress.advance(at + 1, len(texts) + 1)
            else:
                said = [*said[-LINES:], line.rstrip()]
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
    if status:
        where = texts[at] if at >= 0 else "the VM did not start"
        progress.close()
        last = [re.sub(r"^kvmkit: ", "", line) for line in said if line]
        raise GuestFault(f"{checked.name}: {where}: failed{f': {last[-1]}' if last else ''}", "\n".join(said))


def merge(tree: Tree, upper: io.BufferedReader) -> None:
    """Put an overlayfs layer's upper directory, as a tar, onto the tree it was made above.

    A character device 0,0 removes what is below it; an opaque directory, what was in it. Source: the kernel's
    Documentation/filesystems/overlayfs.rst.
    """
    changes = Tree()
    archive.add_tar(changes, upper)
    renamed = (b"trusted.overlay.redirect", b"trusted.overlay.metacopy")
    for path, node in changes.walk():
        if any(name in node.xattrs for name in renamed):
            raise KvmkitError(f"{os.fsdecode(path)}: moved in a way that this kvmkit can't read back")
        opaque = node.xattrs.get(b"trusted.overlay.opaque") == b"y"
        node.xattrs = {name: value for name, value in node.xattrs.items() if not name.startswith(b"trusted.overlay.")}
        old = tree.get(path)
        if stat.S_ISCHR(node.mode) and node.rdev == (0, 0):
            _drop(tree, path)
        elif node.is_directory:
            if old is not None and old.is_directory and not opaque:
                old.mode, old.uid, old.gid = node.mode, node.uid, node.gid
                old.mtime, old.xattrs = node.mtime, node.xattrs
            else:
                _place(tree, path, node, empty=True)
        else:
            _place(tree, path, node)


def _drop(tree: Tree, path: bytes) -> None:
    parent, _slash, name = path.rpartition(b"/")
    node = tree.get(parent)
    if node is not None:
        node.children.pop(name, None)


def _place(tree: Tree, path: bytes, node: Node, *, empty: bool = False) -> None:
    """Without following links: the layer's paths are what they are."""
    parent, _slash, name = path.rpartition(b"/")
    above = tree.get(parent)
    assert above is not None  # the walk came by it
    if empty:
        node = Node(node.mode, node.uid, node.gid, node.mtime, xattrs=node.xattrs)
    above.children[name] = node
