"""Debian's own tools make a tree of its packages: mmdebstrap, without touching this machine."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvmkit.errors import HostError
from kvmkit.guest.apt import Source
from kvmkit.guest.child import end_group
from kvmkit.guest.progress import Progress

END_SECONDS = 10.0

_STEPS = {
    "running apt-get update": "reading package lists",
    "downloading packages": "downloading packages",
    "extracting archives": "unpacking the essential packages",
    "installing essential": "installing the essential packages",
    "installing remaining": "installing the other packages",
    "cleaning package lists": "cleaning up",
    "creating tarball": "packing the tree",
}
"""What mmdebstrap says, and what we say of it."""

_SLIM = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
_KEPT = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")

_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
# The program that merges /usr of an old system needs all of Perl, and has nothing to do in a new one.
_NO_CONVERTER = (
    'mkdir -p "$1/etc/apt/preferences.d" && printf "Package: usrmerge\\nPin: release *\\nPin-Priority: -1\\n"'
    ' >"$1/etc/apt/preferences.d/kvmkit-build"'
)


def slim() -> bytes:
    """What is left out of packages, as dpkg's configuration has it."""
    lines = [f"path-exclude={path}" for path in _SLIM] + [f"path-include={path}" for path in _KEPT]
    return "".join(f"{line}\n" for line in lines).encode()


def bootstrap(
    work: Path, sources: list[Source], packages: Sequence[str], hooks: Sequence[str], progress: Progress
) -> Path:
    """Install `packages` and what every Debian has into a tree. Returns it as a tar archive in `work`.

    `hooks` are mmdebstrap's customize hooks. HostError: a tool is missing, this user may not, or a package fails.
    """
    if not shutil.which("mmdebstrap"):
        raise HostError("building this image needs mmdebstrap: apt-get install mmdebstrap (as root)")
    lists = work / "sources.list"
    lists.write_text("".join(source.line() for source in sources))
    target = work / "root.tar"
    mode = _mode()
    command = [*_apart(), "mmdebstrap"] if mode == "root" else ["mmdebstrap"]
    command += [f"--mode={mode}", "--variant=minbase", "--format=tar", "--architectures=amd64"]
    command += [f"--include={','.join(packages)}", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt={line}" for line in slim().decode().splitlines()]
    if Path(_MERGED_USR).is_dir():
        command += [f"--hook-dir={_MERGED_USR}", f"--setup-hook={_NO_CONVERTER}"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    command += [sources[0].release, str(target), str(lists)]
    progress.step(_STEPS["running apt-get update"])
    said = _run(command, progress)
    if said:
        raise HostError(f"mmdebstrap can't build the root disk: {said}")
    return target


def _mode() -> str:
    """How mmdebstrap may become root in a tree of its own."""
    if os.geteuid() == 0:
        return "root"
    user = pwd.getpwuid(os.geteuid()).pw_name
    if not shutil.which("newuidmap"):
        raise HostError("building this image as an ordinary user needs newuidmap: apt-get install uidmap (as root)")
    for name, option in ("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids"):
        if not _has_range(name, user):
            raise HostError(
                f"building this image as {user} needs user numbers of its own in {name}: "
                f"usermod {option} 100000-165535 {user} (as root)"
            )
    return "unshare"


def _apart() -> list[str]:
    """What runs a command in namespaces of its own, if that can be: its mounts and processes go with it."""
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    can = shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if can else []


def _has_range(name: str, user: str) -> bool:
    try:
        lines = Path(name).read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines)


_WATCH = """\
scratch=$1
shift
trap 'trap "" TERM; again=1; kill -TERM 0' TERM INT HUP
"$@" </dev/null & child=$!
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
rm -rf "$scratch" 2>/dev/null || mmdebstrap --unshare-helper rm -rf "$scratch" # of users in a namespace
[ -z "$again" ] || { sleep 1; rm -rf "$scratch"; } # what the last of them left
exit $status
"""
"""Runs mmdebstrap, and has it end and clean up when we are killed, which setpriv tells by SIGTERM.

All of its processes are told, as by a terminal's Ctrl-C: the first of them only waits for the others.
"""


def _run(command: list[str], progress: Progress) -> str:
    """Run it to its end. Returns "" or what went wrong, in one line."""
    _sweep()
    scratch = tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=_roomy())
    os.chmod(scratch, 0o755)  # in a namespace of its own, mmdebstrap is another user
    environment = {**os.environ, "TMPDIR": scratch, "LC_ALL": "C.UTF-8"}
    watched = ["setpriv", "--pdeathsig", "TERM", "/bin/sh", "-c", _WATCH, "sh", scratch]
    process = subprocess.Popen(
        [*watched, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=environment, start_new_session=True, text=True, errors="replace",
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            line = line.strip()
            lines = [*lines[-200:], line]
            for number, (key, text) in enumerate(_STEPS.items(), 1):
                if line.startswith(f"I: {key}"):
                    progress.step(text)
                    progress.advance(number, len(_STEPS) + 1)
        code = process.wait()
    finally:
        if process.poll() is None:  # it removes what it made when it is told to end
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        end_group(process)
        process.stderr.close()
        shutil.rmtree(scratch, ignore_errors=True)
    if code == 0:
        return ""
    telling = [line for line in lines if re.match(r"(E|W|dpkg: error|apt-get): ?", line)]
    first = next((line for line in telling if line.startswith("E: ") and "failed with" not in line), "")
    return (first or (telling or lines or ["no reason given"])[-1]).removeprefix("E: ")


_SCRATCH = "kvmkit-build-"


def _sweep() -> None:
    """Remove trees of ours whose builder is gone, and could not do it."""
    for place in {"/dev/shm", tempfile.gettempdir()}:
        for left in Path(place).glob(f"{_SCRATCH}*"):
            pid = left.name.removeprefix(_SCRATCH).partition("-")[0]
            with suppress(OSError):  # another build's, gone meanwhile
                if pid.isdigit() and not os.path.exists(f"/proc/{pid}") and left.lstat().st_uid == os.geteuid():
                    shutil.rmtree(left, ignore_errors=True)


def _roomy() -> str:
    """Where a tree of some 300 MB may be made: in memory if there is plenty, as it is read once and removed."""
    shared = "/dev/shm"
    try:
        found = os.statvfs(shared)
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
        usable = not found.f_flag & (os.ST_NODEV | os.ST_NOEXEC)
        if usable and found.f_bavail * found.f_frsize > 1 << 30 and available > 3 << 20:
            return shared
    except (OSError, StopIteration, ValueError):
        pass
    return tempfile.gettempdir()
