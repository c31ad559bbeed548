"""`kvmkit ssh`: ssh into a guest, over vsock."""

from __future__ import annotations

import argparse

from kvmkit.cli import named
from kvmkit.cli.parser import seconds
from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["ssh"].summary
TAKES_COMMAND = True

DESCRIPTION = """\
ssh into the guest of a VM that runs, over vsock: it needs no network. COMMAND's input, output and exit status are
yours; without COMMAND: a login shell. A guest that is starting is waited for."""

EPILOG = """\
examples:
  kvmkit run -d --name web debian-systemd && kvmkit ssh web
  kvmkit ssh web -- systemctl status
  tar c . | kvmkit ssh web -- tar x
  kvmkit ssh -l debian cloud                 another user than root

The key pair is this home's, made on first use; a VM's host keys are noted in its directory. In a guest with kvmkit's
agent both are exchanged by it; an imported cloud image has the key by its seed (kvmkit image import --cloud-init).
exit status: the remote command's; 255 when ssh itself fails, 1 when there is no sshd in the guest, 2 bad input.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit ssh [options] NAME [-- COMMAND ...]"
    parser.epilog = EPILOG
    parser.add_argument("--user", "-l", metavar="USER", default="root", help="who logs in (default: root)")
    parser.add_argument("--tty", "-t", action="store_true", help="give COMMAND a terminal")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="how long to wait for the guest's sshd")
    parser.add_argument("--connect", action="store_true", help=argparse.SUPPRESS)  # what ssh calls as its ProxyCommand
    named.one(parser)


def run(args: argparse.Namespace) -> int:
    import os

    from kvmkit.errors import BadInput
    from kvmkit.manager import ssh
    from kvmkit.manager.home import open_home

    with open_home(args.name) as home:
        if args.connect:
            with ssh.connect(home, seconds=args.timeout or ssh.SECONDS) as link:
                ssh.pass_on(link)
            return 0
        if args.user.startswith("-") or not args.user:
            raise BadInput(f"--user {args.user!r}: can't be a user's name")
        line = ssh.command(home, args.user, args.command or [], tty=args.tty, seconds=args.timeout)
    os.execv(line[0], line)
