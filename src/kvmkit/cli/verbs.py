"""The verbs, and where each lives. Listed here with their summaries, so that a list of them imports none."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    module: str
    summary: str
    names: bool = False
    """Its arguments are names of VMs, which a shell can complete."""


VERBS: dict[str, Verb] = {
    "run": Verb("kvmkit.cli.run", "run a command, or a shell, in a new VM"),
    "create": Verb("kvmkit.cli.create", "make a VM that is to be started later"),
    "start": Verb("kvmkit.cli.start", "run VMs in the background", names=True),
    "stop": Verb("kvmkit.cli.stop", "ask guests to power off, and end those that don't", names=True),
    "kill": Verb("kvmkit.cli.kill", "end VMs at once", names=True),
    "restart": Verb("kvmkit.cli.restart", "stop VMs, and start them", names=True),
    "pause": Verb("kvmkit.cli.pause", "hold VMs where they are", names=True),
    "resume": Verb("kvmkit.cli.resume", "let paused VMs go on", names=True),
    "rm": Verb("kvmkit.cli.rm", "remove VMs and all that is theirs", names=True),
    "ps": Verb("kvmkit.cli.ps", "list VMs"),
    "exec": Verb("kvmkit.cli.exec", "run a command in a VM that runs", names=True),
    "ssh": Verb("kvmkit.cli.ssh", "ssh into a guest, over vsock", names=True),
    "cp": Verb("kvmkit.cli.cp", "copy files into a guest and out of it", names=True),
    "console": Verb("kvmkit.cli.console", "attach to the console of a VM that runs", names=True),
    "logs": Verb("kvmkit.cli.logs", "show what a VM's console said", names=True),
    "inspect": Verb("kvmkit.cli.inspect", "show all that is known of VMs, as JSON", names=True),
    "stats": Verb("kvmkit.cli.stats", "show what running VMs use", names=True),
    "wait": Verb("kvmkit.cli.wait", "wait until VMs have ended", names=True),
    "set": Verb("kvmkit.cli.set", "change a VM while it runs", names=True),
    "rename": Verb("kvmkit.cli.rename", "give a VM another name", names=True),
    "events": Verb("kvmkit.cli.events", "show what happened to VMs", names=True),
    "image": Verb("kvmkit.cli.image", "list, build, import, pull, export and remove images"),
    "disk": Verb("kvmkit.cli.disk", "create, resize, check and commit disks"),
    "secureboot": Verb("kvmkit.cli.secureboot", "read and enrol UEFI Secure Boot keys, turn Secure Boot on and off"),
    "schema": Verb("kvmkit.cli.schema", "print the JSON schema of a VM's spec"),
    "completion": Verb("kvmkit.cli.completion", "print completion for a shell: bash, zsh or fish"),
    "accel": Verb("kvmkit.cli.accel", "show which engine runs guests here, and why"),
    "network": Verb("kvmkit.cli.network", "make networks that VMs share: NAT, DHCP, names"),
    "doctor": Verb("kvmkit.cli.doctor", "check this host for running VMs"),
    "host": Verb("kvmkit.cli.host", "set up this host: modules, nested VMs, huge pages, permissions; and undo it"),
    "guest": Verb("kvmkit.cli.guest", "inside a guest: check its virtio drivers and devices"),
    "cpu": Verb("kvmkit.cli.cpu", "list CPU models, and what this host can give of them"),
    "qemu": Verb("kvmkit.cli.qemu", "run what QEMU's own command line describes"),
    "import": Verb("kvmkit.cli.import_domain", "make a VM's file of libvirt's domain XML"),
    "export": Verb("kvmkit.cli.export", "write a VM as libvirt's XML, QEMU's command line, or TOML", names=True),
    "serve-device": Verb("kvmkit.cli.serve_device", "offer a device to another VMM, by vhost-user"),
    "bench": Verb("kvmkit.cli.bench", "measure kvmkit beside QEMU"),
    "help": Verb("kvmkit.cli.help", "explain a verb or a topic"),
}
