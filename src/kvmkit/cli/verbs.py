"""The verbs, and where each lives. Listed here with their summaries, so that a list of them imports none."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "run": Verb("kvmkit.cli.run", "run a command, or a shell, in a new VM"),
    "accel": Verb("kvmkit.cli.accel", "show which engine runs guests here, and why"),
    "doctor": Verb("kvmkit.cli.doctor", "check this host for running VMs"),
    "host": Verb("kvmkit.cli.host", "set up this host: modules, nested VMs, huge pages, permissions; and undo it"),
    "guest": Verb("kvmkit.cli.guest", "inside a guest: check its virtio drivers and devices"),
    "cpu": Verb("kvmkit.cli.cpu", "list CPU models, and what this host can give of them"),
    "qemu": Verb("kvmkit.cli.qemu", "run what QEMU's own command line describes"),
    "bench": Verb("kvmkit.cli.bench", "measure kvmkit beside QEMU"),
    "help": Verb("kvmkit.cli.help", "explain a verb or a topic"),
}
