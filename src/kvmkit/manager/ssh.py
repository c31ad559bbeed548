"""ssh into a guest, over vsock: a key pair of this home's, host keys noted per VM, and the way there.

    <data>/ssh/id_ed25519[.pub]     this home's key pair
    <machine>/known_hosts           the VM's host keys

Where kvmkit's agent is in the guest, it is asked for the host's keys and given ours: nothing has to be believed. Other
guests have ours by cloud-init's seed, and their host key is noted at the first visit.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.errors import HostError, KvmkitError
from kvmkit.guest import store
from kvmkit.manager import control, files, wire
from kvmkit.manager.sockets import NAME
from kvmkit.manager.wire import NotRunning
from kvmkit.paths import data_dir
from kvmkit.paths import program as program_of_kvmkit

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

PORT = 22
KNOWN_HOSTS = "known_hosts"
SECONDS = 300.0
"""How long a guest that is starting is waited for."""
ANSWER_SECONDS = 60.0

_GIVE_KEY = """\
home=$(awk -F: -v user="$1" '$1 == user { print $6 }' /etc/passwd)
[ -n "$home" ] || { echo "no user $1"; exit 3; }
[ -x /usr/sbin/sshd ] || { echo "no sshd"; exit 4; }
umask 077
file=$home/.ssh/authorized_keys
mkdir -p "$home/.ssh"
grep -qxF "$2" "$file" 2>/dev/null || echo "$2" >>"$file"
chown -R "$1:" "$home/.ssh"
! command -v systemctl >/dev/null || systemctl start kvmkit-host-key.service 2>/dev/null
cat /etc/ssh/ssh_host_*_key.pub
"""


def public_key() -> str:
    """This home's, made on first use. HostError: ssh is not installed."""
    return Path(f"{_key()}.pub").read_text().strip()


def _key() -> Path:
    program("ssh-keygen")
    directory = data_dir() / "ssh"
    directory.mkdir(mode=0o700, exist_ok=True)
    key = directory / "id_ed25519"
    with store.locked(directory / "key"):
        if not key.exists() or not Path(f"{key}.pub").exists():
            work = directory / ".new"
            for path in (work, Path(f"{work}.pub")):
                path.unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kvmkit", "-f", str(work)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise HostError(f"ssh-keygen can't make a key in {directory}: {' '.join(done.stderr.split())}")
            Path(f"{work}.pub").rename(f"{key}.pub")
            work.rename(key)
    return key


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise HostError(f"{name} is not installed: apt-get install openssh-client (as root)")
    return found


def command(home: Home, user: str, words: list[str], *, tty: bool = False, seconds: float | None = None) -> list[str]:
    """The ssh command line for a VM that runs. KvmkitError: its guest has no sshd, or no such user."""
    ssh = program("ssh")
    wanted = home.spec()
    if not home.running():
        raise NotRunning(f"{home.name} is not running: {control.told(home)}")
    if wanted.vsock_device is None:
        raise KvmkitError(f"{home.name} has no vsock, by which ssh goes: give it --vsock at its start")
    key = _key()
    known = home.path / KNOWN_HOSTS
    strict = "accept-new"
    if wanted.with_agent:
        _introduce(home, user, known)
        strict = "yes"
    else:
        connect(home, seconds=SECONDS if seconds is None else seconds).close()  # what is amiss is told in our words
    wait = seconds or ANSWER_SECONDS  # an agent that answers has sshd not far behind it
    kvmkit = " ".join(map(_quoted, program_of_kvmkit()))
    options = {
        "ProxyCommand": f"{kvmkit} ssh --connect --timeout {wait:g} {home.name}",
        "ProxyUseFdpass": "yes",
        "UserKnownHostsFile": f'"{known}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": strict,
        "HostKeyAlias": "guest",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "IdentityFile": f'"{key}"',
        "LogLevel": "ERROR",
    }
    line = [ssh, "-F", "none", "-l", user]
    for name, value in options.items():
        line += ["-o", f"{name}={value}"]
    return [*line, *(["-t"] if tty else []), "--", home.name, *words]


def _quoted(text: str) -> str:
    return shlex.quote(text.replace("%", "%%"))  # ssh has its own use for %


def _introduce(home: Home, user: str, known: Path) -> None:
    """Give the guest our key, and note its host keys."""
    from kvmkit.manager import execute

    words = ["sh", "-c", _GIVE_KEY, "sh", user, public_key()]
    status, told = execute.said(home, words, most=1 << 16, both=True, timeout=ANSWER_SECONDS)
    said = told.decode("utf-8", "replace").splitlines()
    if status == 4:
        raise KvmkitError(f"{home.name}: its guest has no sshd: use `kvmkit exec`, or the image debian-systemd")
    if status == 3:
        raise KvmkitError(f"{home.name}: its guest has no user {user}")
    keys = [line.split()[:2] for line in said if line.startswith(("ssh-", "ecdsa-")) and len(line.split()) >= 2]
    if status or not keys:
        raise KvmkitError(f"{home.name}: its guest's ssh can't be set up: {said[-1] if said else f'status {status}'}")
    text = "".join(f"guest {kind} {key}\n" for kind, key in keys)
    files.replace(home.directory, known.name, text.encode(), sync=False)


def connect(home: Home, port: int = PORT, seconds: float = SECONDS) -> socket.socket:
    """A connection to the guest's port by vsock; a guest that is starting is waited for. KvmkitError: nobody is there.

    The VM's process answers "OK" once the guest has taken it (virtio/vsock.py).
    """
    end = time.monotonic() + seconds
    path = wire.address(home.directory, NAME)
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(max(end - time.monotonic(), 0.1))
        try:
            link.connect(path)
            link.sendall(b"CONNECT %d\n" % port)
            line = b""
            while not line.endswith(b"\n") and len(line) < 32 and (byte := link.recv(1)):
                line += byte
            if line.startswith(b"OK "):
                link.settimeout(None)
                return link
        except OSError:
            pass
        link.close()
        if not home.running():
            raise NotRunning(f"{home.name} is not running: {control.told(home)}")
        if time.monotonic() >= end:
            raise KvmkitError(f"{home.name}: nobody in its guest listens on vsock port {port}: has it sshd there?")
        time.sleep(0.2)


def pass_on(link: socket.socket, to: int = 1) -> None:
    """Give the connection to ssh, which waits for a descriptor on our standard output (its ProxyUseFdpass)."""
    with socket.socket(fileno=os.dup(to)) as out:
        socket.send_fds(out, [b"\0"], [link.fileno()])
