"""Take packages from the machine's own apt sources, without touching the machine.

apt runs with its state and cache in a directory of ours, so that any user may do this, and it checks the
signatures by the machine's own keys. Nothing is installed: packages are downloaded and read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kvmkit.errors import HostError
from kvmkit.guest.child import end_group
from kvmkit.guest.progress import Progress

# The machine's configuration is read first; this only moves what is written, and switches off what other
# software hooks into an update. An index or package without a good signature is refused whatever the machine says.
_CONFIGURATION = """\
Dir::State "{directory}/state";
Dir::State::lists "lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
Dir::Log "{directory}/log";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "{user}";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
"""

_ARCHIVE_ERROR = re.compile(r"^[EW]: *(.+)$", re.MULTILINE)
_STATUS = re.compile(rb"^dlstatus:[^:]*:([0-9.]+):")


@dataclass(frozen=True)
class Source:
    """One line of apt's sources."""

    uri: str
    release: str
    components: tuple[str, ...]
    keys: str = ""
    """What Signed-By says, when that is files."""

    def line(self) -> str:
        options = f" [signed-by={self.keys}]" if self.keys else ""
        return f"deb{options} {self.uri} {' '.join([self.release, *self.components])}\n"


class Apt:
    """apt with its own state in `directory`, which the caller makes and removes."""

    def __init__(self, directory: Path, progress: Progress, installed: bytes = b"") -> None:
        """`installed`: dpkg's status file of the system that packages are for."""
        for name in ("apt-get", "apt-cache", "dpkg-deb"):
            if not shutil.which(name):
                raise HostError(
                    f"building the guest image needs {name}, which this machine does not have: "
                    "build it on a Debian system (or in a container of one), or give --kernel and --initrd"
                )
        self._directory = directory
        self._progress = progress
        for name in ("state/lists/partial", "cache/archives/partial", "log", "packages", "tmp"):
            (directory / name).mkdir(parents=True)
        (directory / "status").write_bytes(installed)
        self._config = directory / "apt.conf"
        # As root, apt would hand the download to a user who may not enter this directory.
        user = "root" if os.geteuid() == 0 else ""
        self._config.write_text(_CONFIGURATION.format(directory=str(directory).replace('"', ""), user=user))

    def update(self) -> None:
        """Fetch the package lists.

        One source of many that fails is the machine's business, not ours, unless a package is then not found:
        so a failure is kept for `show` to tell.
        """
        self._progress.step("reading package lists")
        self._update_errors = self._run(["apt-get", "-qq", "update"], check=False)

    def sources(self) -> list[Source]:
        """Where Debian's own packages come from on this machine, after `update`. HostError: nowhere."""
        fields = ("REPO_URI", "RELEASE", "COMPONENT", "SIGNED_BY", "ORIGIN")
        form = "\t".join(f"$({field})" for field in fields)
        command = ["apt-get", "-c", str(self._config), "indextargets", "--format", form, "Created-By: Packages"]
        result = subprocess.run(command, capture_output=True, text=True, env=self._environment(), check=False)
        found: dict[tuple[str, str, str], list[str]] = {}
        for line in result.stdout.splitlines():
            uri, release, component, keys, origin = line.split("\t")
            if origin == "Debian" and not release.endswith("/"):
                known = found.setdefault((uri, release, keys if keys.startswith("/") else ""), [])
                known.extend([component] if component not in known else [])
        if not found:
            why = self._update_errors or "the root disk is made of Debian's packages"
            raise HostError(f"this machine's apt sources name no archive of Debian's: {why}")
        # A release's own archive first: its updates carry longer names.
        return [
            Source(uri, release, tuple(components), keys)
            for (uri, release, keys), components in sorted(found.items(), key=lambda item: len(item[0][1]))
        ]

    def show(self, package: str) -> dict[str, str]:
        """The fields of the version apt would install. HostError: there is none."""
        command = ["apt-cache", "-c", str(self._config), "show", "--no-all-versions", package]
        result = subprocess.run(command, capture_output=True, text=True, env=self._environment(), check=False)
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", result.stdout.partition("\n\n")[0], re.MULTILINE))
        if result.returncode or "Version" not in fields:
            why = self._update_errors or f"{_first_error(result.stderr)}; the guest image is made of Debian's packages"
            raise HostError(f"apt does not find the package {package} in this machine's sources: {why}")
        return fields

    def download(self, packages: list[str]) -> dict[str, Path]:
        """Fetch the packages, checked against the signed lists. Returns name -> .deb file."""
        self._progress.step("downloading " + ", ".join(packages))
        target = self._directory / "packages"
        error = self._run(["apt-get", "-q", "download", *packages], cwd=target)
        if error:
            raise HostError(f"apt can't download {', '.join(packages)}: {error}")
        found = {file.name.partition("_")[0]: file for file in target.glob("*.deb")}
        for package in packages:
            if package not in found:
                raise HostError(f"apt downloaded no file for {package}")
        return found

    def download_with_needs(self, packages: Sequence[str]) -> list[Path]:
        """Fetch packages and all that they need beside what is installed. Returns the .deb files."""
        self._progress.step("downloading " + ", ".join(packages))
        install = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", *packages]
        error = self._run(install)
        if error:
            raise HostError(f"apt can't install {', '.join(packages)}: {error}")
        return sorted((self._directory / "cache" / "archives").glob("*.deb"))

    def _run(self, command: list[str], cwd: Path | None = None, check: bool = True) -> str:
        """Run apt, moving the progress bar. Returns "" or what went wrong, in one line."""
        reading, writing = os.pipe()
        watched = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        arguments = [*watched, command[0], "-c", str(self._config), "-o", f"APT::Status-Fd={writing}", *command[1:]]
        with (self._directory / "log" / "output").open("w+") as log, os.fdopen(reading, "rb") as status:
            try:
                process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[writing], cwd=cwd,
                    env=self._environment(), start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(writing)
            try:
                for percent in _percents(status):
                    self._progress.advance(int(percent * 10), 1000)
                code = process.wait()
            finally:
                end_group(process)
            log.seek(0)
            text = log.read()
        return _first_error(text) if code or (not check and "\nW: " in "\n" + text) else ""

    def _environment(self) -> dict[str, str]:
        """apt's helpers write beside the lists, too: one that is killed leaves its files, which go with the others."""
        own = {"TMPDIR": str(self._directory / "tmp"), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return {**os.environ, **own}


def _percents(status: IO[bytes]) -> Iterator[float]:
    for line in status:
        match = _STATUS.match(line)
        if match:
            yield float(match[1])


def _first_error(text: str) -> str:
    found = _ARCHIVE_ERROR.findall(text)
    return " ".join(found[0].split()) if found else "apt gave no reason"
