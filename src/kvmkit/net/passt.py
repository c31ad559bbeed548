"""passt: the guest's connections become sockets of an unprivileged process on the host. Started by us, for one VM.

It speaks over a socket pair, and ends when our end is closed. The guest's side of the network is always the same:
10.0.2.15/24, with the gateway 10.0.2.2 and a name server at 10.0.2.3 that forwards to the host's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence

from kvmkit.errors import HostError
from kvmkit.vhost_user.daemon import await_end

PROGRAM = "passt"
MISSING = f"--net user needs {PROGRAM}: sudo apt-get install passt"
ADDRESS, PREFIX, GATEWAY, NAMESERVER = "10.0.2.15", 24, "10.0.2.2", "10.0.2.3"
MTU = 65520
"""The largest that passt takes: fewer and larger frames."""
END_SECONDS = 2.0
BEHIND = "/run/systemd/resolve/resolv.conf"
"""What systemd-resolved asks."""


def find() -> str | None:
    """Where it is; None: it is not installed."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/bin:/usr/local/bin")


def own_nameserver() -> str:
    """The name server to tell passt of, where this host's is one of its own, such as systemd-resolved's 127.0.0.53.

    passt does not pass on to that, so it is one of those that it asks itself. "": passt finds the host's, and forwards.
    """
    servers = nameservers("/etc/resolv.conf")
    if not servers or not all(server.startswith("127.") for server in servers):
        return ""
    return next((server for server in nameservers(BEHIND) if not server.startswith("127.")), "")


def nameserver() -> str:
    """Where the guest asks for names."""
    return own_nameserver() or NAMESERVER


def nameservers(path: str) -> list[str]:
    """The IPv4 name servers in a file as resolv.conf(5) has it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return []
    return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and ":" not in line[1]]


class Passt:
    """A running passt. `socket` is for a StreamBackend, which closes it. `close` waits for its end.

    `publish`: (protocol "tcp" or "udp", address to listen at or "", host port, guest port). `loopback`: the host's
    loopback address is to be reached at the gateway's. HostError: it is not installed, or can't be started.
    """

    def __init__(self, publish: Sequence[tuple[str, str, int, int]] = (), *, loopback: bool = False) -> None:
        program = find()
        if program is None:
            raise HostError(MISSING)
        self.socket, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # kept as long as the process
        command = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno())]
        command += ["--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY, "--mtu", str(MTU)]
        command += ["--dns-forward", NAMESERVER, "--ipv4-only"]
        command += [] if loopback else ["--no-map-gw"]
        server = own_nameserver()
        command += ["--dns", server] if server else []
        for protocol, address, port, guest_port in publish:
            where = f"{address}/" if address else ""
            command += ["--tcp-ports" if protocol == "tcp" else "--udp-ports", f"{where}{port}:{guest_port}"]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for the VM, which ends it
                cwd="/",
            )
        except OSError as error:
            self.socket.close()
            self._said.close()
            raise HostError(f"can't start {program}: {error.strerror}") from None
        finally:
            theirs.close()

    def introduce(self, mac: bytes) -> None:
        """Tell it the guest's address (an ARP announcement, RFC 5227), so that a published port works before the guest
        has said a word."""
        own = mac + socket.inet_aton(ADDRESS)
        frame = b"\xff" * 6 + mac + bytes.fromhex("0806 0001 0800 06 04 0001") + own + bytes(6) + own[6:]
        self.socket.send(len(frame).to_bytes(4, "big") + frame)

    def why(self) -> str:
        """What it said last, for when it has ended."""
        try:
            size = os.fstat(self._said.fileno()).st_size
            text = os.pread(self._said.fileno(), 4096, max(size - 4096, 0)).decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""
        noise = ("to syslog", "Don't run as root")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not any(each in line for each in noise)]
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End it. The backend must be closed."""
        self.socket.close()
        await_end(self.process, END_SECONDS)
        self._said.close()
