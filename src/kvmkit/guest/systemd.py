"""The image `debian-systemd`: what it has beside `debian`'s, which is systemd, cloud-init, sshd and qemu-ga.

Our agent mounts the root disk as in `debian`, puts a copy of itself into /run, and becomes systemd, which runs that
copy as a service. sshd listens on vsock, too, so that `kvmkit ssh` needs no network.
"""

from __future__ import annotations

import stat

from kvmkit.guest.disk.tree import Node, Tree

PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "openssh-server", "cloud-init", "qemu-guest-agent",
    "login", "passwd", "sudo",
)  # fmt: skip

APPEND = "kvmkit.init=/usr/lib/systemd/systemd net.ifnames=0"
"""The first has the agent go on as that program; the second has cards keep the names by which it sets them up."""

_MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty@tty1.service systemd-pstore.service systemd-timesyncd.service
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount
    modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service
    modprobe@dm_mod.service modprobe@loop.service modprobe@fuse.service sys-fs-fuse-connections.mount
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount
    sys-kernel-config.mount systemd-update-utmp.service systemd-update-utmp-runlevel.service
""".split()
"""What a VM has no use for (the host sets its clock), and a software CPU feels at each boot."""

_AGENT = """\
[Unit]
Description=Agent of kvmkit
ConditionFileIsExecutable=/run/kvmkit/agent
ConditionKernelCommandLine=!kvmkit.channel=console
After=systemd-udev-trigger.service
Before=network.target

[Service]
ExecStart=/run/kvmkit/agent /dev/ttyS1 service
KillMode=process
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
"""
_HOST_KEY = """\
[Unit]
Description=Make this VM's own ssh host key
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
DefaultDependencies=no
After=local-fs.target
Before=ssh.service ssh@.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -C "" -f /etc/ssh/ssh_host_ed25519_key
"""
SSH_SOCKET = """\
[Unit]
Description=sshd on vsock

[Socket]
ListenStream=vsock::22
Accept=yes

[Install]
WantedBy=sockets.target
"""
SSH_SERVICE = """\
[Unit]
Description=sshd for one connection by vsock

[Service]
ExecStartPre=/bin/mkdir -p /run/sshd
ExecStart=-/usr/sbin/sshd -i
StandardInput=socket
KillMode=process
"""
_WAIT_FOR_KEY = "Wants=kvmkit-host-key.service\nAfter=kvmkit-host-key.service\n"
_GETTY = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --wait-cr --noclear --keep-baud 115200,57600,38400,9600 - $TERM
"""
_CLOUD = """\
# Of kvmkit: without a seed it is left out of the boot (one name alone would be taken unseen); the agent has set up the
# network.
datasource_list: [NoCloud, ConfigDrive]
network: {config: disabled}
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
disable_root: false
resize_rootfs: false
locale: "no"
"""
"""The root is an overlay, which can't be resized. Quoted, as before 23 cloud-init wants a string there."""
_LAST = """\
#!/bin/sh
# Of kvmkit: the layer below the root is left as a clean file system.
for disk in /sys/block/vd*; do
	[ "$(cat "$disk/serial")" = kvmkit-layer ] || continue
	mkdir -p /run/kvmkit/layer
	mount "/dev/${disk##*/}" /run/kvmkit/layer && sync && fsfreeze -f /run/kvmkit/layer
done 2>/dev/null
"""
"""Run by systemd when all that can be is stopped and unmounted."""
_UNITS = "etc/systemd/system"


def add_files(tree: Tree) -> None:
    """Units of ours, and what is switched off."""
    units = {
        "kvmkit-agent.service": _AGENT,
        "kvmkit-host-key.service": _HOST_KEY,
        "kvmkit-ssh.socket": SSH_SOCKET,
        "kvmkit-ssh@.service": SSH_SERVICE.replace("\n\n", f"\n{_WAIT_FOR_KEY}\n", 1),
        "serial-getty@ttyS0.service.d/kvmkit.conf": _GETTY,
    }
    for name, text in units.items():
        tree.file(f"{_UNITS}/{name}", text.encode())
    wanted = {
        "multi-user.target": "kvmkit-agent.service",
        "sockets.target": "kvmkit-ssh.socket",
    }
    for target, unit in wanted.items():
        tree.symlink(f"{_UNITS}/{target}.wants/{unit}", f"/{_UNITS}/{unit}")
    # The daemon starts when somebody comes by the network.
    tree.remove(f"{_UNITS}/multi-user.target.wants/ssh.service".encode())
    tree.remove(f"{_UNITS}/sshd.service".encode())
    tree.symlink(f"{_UNITS}/sockets.target.wants/ssh.socket", "/usr/lib/systemd/system/ssh.socket")
    tree.symlink(f"{_UNITS}/ssh@.service.wants/kvmkit-host-key.service", f"/{_UNITS}/kvmkit-host-key.service")
    tree.symlink(f"{_UNITS}/ssh.service.wants/kvmkit-host-key.service", f"/{_UNITS}/kvmkit-host-key.service")
    # What is done where packages came without their scripts: theirs have run.
    newest = max(node.mtime for node in (tree.get(b"usr"), tree.get(b"etc"), tree.get(b"var")) if node is not None)
    for path in (b"etc/.updated", b"var/.updated"):
        tree.put(path, Node(stat.S_IFREG | 0o644, mtime=newest + 1))
    for unit in _MASKED:
        tree.symlink(f"{_UNITS}/{unit}", "/dev/null")
    tree.symlink(f"{_UNITS}/default.target", "/usr/lib/systemd/system/multi-user.target")
    tree.file("usr/lib/systemd/system-shutdown/kvmkit", _LAST.encode(), 0o755)
    tree.file("etc/cloud/cloud.cfg.d/99-kvmkit.cfg", _CLOUD.encode())
    tree.file("etc/ssh/sshd_config.d/kvmkit.conf", b"HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\n")
    for kind in ("rsa", "ecdsa", "ed25519"):  # each VM is to have its own
        for suffix in ("", ".pub"):
            tree.remove(f"etc/ssh/ssh_host_{kind}_key{suffix}".encode())
