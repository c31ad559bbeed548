"""What `kvmkit help` explains beside the verbs."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    summary: str
    text: str


EXIT_STATUS = """
Exit statuses of `kvmkit run`

  0-255     the command's own, when it ran; a shell's 126 or 127 when it could not be started,
            128 + N when signal N ended it in the guest
  odd       with --debug-exit, (V << 1) | 1 when the guest wrote V to port 0xf4 (the low 8 bits count)
  0         without a command: the guest powered off, or you left by the escape key

  1         kvmkit could not do it: the host lacks something, or the guest powered off before its command
            ended, restarted, panicked, triple-faulted, or met what the engine can't go on from
  2         bad input, found before anything started
  124       --timeout ran out
  129 130 143   kvmkit itself was ended by SIGHUP, Ctrl-C (SIGINT) or SIGTERM (131: SIGQUIT)
  141       nobody reads standard output any more (SIGPIPE)

A command can end with any of these numbers too. When it was kvmkit, and not the command, there is a line
on standard error that begins with `kvmkit: `; only for 129, 130, 131, 141 and 143, which you caused, there is none.

`kvmkit doctor` and `kvmkit guest check` have statuses of their own; see their help.
"""

ENGINES = """
Engines (--accel)

  kvm    the guest runs on the processor, through /dev/kvm
  tcg    the guest runs on a software CPU: anywhere, and many times slower; one vCPU
  auto   kvm where it is really faster, else tcg

/dev/kvm can be there and be of no use: a VM whose own host gives it no VT-x or AMD-V may have one that
interprets each instruction of a guest's kernel. So `auto` measures it, once for each boot of the host;
`kvmkit accel` shows what was found.
"""

KERNELS = """
Kernels (--kernel)

  a bzImage          unpacked on the host and entered by Linux's 64-bit boot protocol; what can't be
                     unpacked here runs its own decompressor
  an ELF vmlinux     the same, x86-64
  an ELF multiboot   multiboot 1, 32-bit entry; each --initrd becomes a module

An initrd may be several archives, plain or packed by gzip, bzip2, lzma, xz, lzo, lz4 or zstd; one that is
truncated is refused before anything starts, and so is what gzip's checksum does not fit.

With --kernel and no command, the first serial port is on your terminal (as with --console). With --kernel,
--append is the whole kernel command line; without it that is `console=ttyS0 panic=-1`.
A command needs kvmkit's agent in the guest: in kvmkit's images it is, in another initrd it must be /init.
"""

FILES = """
Files

  ~/.cache/kvmkit          what can be made again: guest images, unpacked kernels, the measurement of /dev/kvm
  ~/.local/share/kvmkit    what can't: VMs, images of your own
  $XDG_RUNTIME_DIR/kvmkit  what ends with the login

XDG_CACHE_HOME and XDG_DATA_HOME move them; KVMKIT_HOME puts all three below one directory.
"""

DISKS = """
Disks (--disk PATH[,ro][,snapshot][,direct][,serial=TEXT][,queues=N][,bps=N][,iops=N], as often as needed)

  PATH          a raw image file or a block device of the host; a comma in it is written ,,
  ro            the guest can't write to it; several VMs may have it so at once
  snapshot      the guest may write, to a copy (in TMPDIR, else /var/tmp) that is thrown away at the end
  direct        past the host's page cache (O_DIRECT)
  serial=TEXT   what the guest sees in /sys/block/vda/serial
  queues=N      1 to 8; without it one for each vCPU
  format=F      raw, qcow2, luks, vmdk, vhdx or vdi, where the name (disk.qcow2) does not say it; not raw: served by
                qemu-storage-daemon, as are nbd://HOST/NAME, iscsi:// and rbd:// (docs/vhost-user.md)
  backing=PATH  a qcow2 image's base in another directory, which the guest may read
  key=FILE      holds the passphrase of an encrypted image
  bps=N iops=N  at most so many bytes and requests a second on average, such as bps=20M,iops=500; what may come at once
                after a rest is bps_burst=N and iops_burst=N, without them what a tenth of a second brings

In the guest they are /dev/vda, /dev/vdb and so on, by virtio-blk, and an image's root disk comes after them; its
kernel needs CONFIG_VIRTIO_BLK and CONFIG_VIRTIO_MMIO. What the guest has flushed (sync, fsync) is on the host's disk,
whatever happens then. A disk that is written is locked: no second VM can have it.

SCSI disks and CD-ROMs (--scsi PATH[,ro][,snapshot][,cd][,serial=TEXT][,bps=N][,iops=N]) are /dev/sda and /dev/sr0 and
so on, by virtio-scsi (CONFIG_SCSI_VIRTIO): target 0 is the first, 1 the second; the limits are each one's own. Disks by
virtio-blk are faster. With --transport pci the kernel needs CONFIG_VIRTIO_PCI instead.

While a VM runs, `kvmkit set` changes rates, enlarges disks and changes CDs: kvmkit help set.

  truncate -s 1G disk.raw
  kvmkit run --disk disk.raw
  kvmkit run --disk disk.raw,ro --disk /dev/sdb,direct -- sh -c 'sha256sum /dev/vd?'
  kvmkit run --scsi disk.raw --scsi debian.iso,cd
"""

FIRMWARE = """
Firmware (--firmware bios, uefi, or an image's path)

Starts a disk by its own boot loader, as a PC does. SeaBIOS and OVMF are taken from the host (Debian: apt-get install
seabios ovmf). The boot loader's menu and the system's console are the serial port on your terminal; Linux puts its own
there with console=ttyS0. Disks are tried in their order, then CD-ROMs.

UEFI also starts a kernel or an image, without a disk of yours. What it remembers (boot entries, Secure Boot's keys) is
in a file of the VM's own, or of yours (--nvram), and goes with a VM that is not kept. With --secure-boot that begins
with Microsoft's keys; others: kvmkit secureboot.

  kvmkit run --firmware bios --disk system.raw
  kvmkit run --firmware bios --disk system.raw,snapshot         what it writes is thrown away
  kvmkit run --firmware bios --disk new.raw --scsi install.iso,cd --memory 2G
  kvmkit qemu -m 2048 -hda new.raw -cdrom install.iso -boot d   the CD-ROM first

  kvmkit run --firmware uefi --secure-boot --disk system.raw
  kvmkit run --firmware uefi --disk new.raw --scsi install.iso,cd --memory 2G --nvram vars.fd
  kvmkit run --firmware uefi -- ls /sys/firmware/efi
  kvmkit create --name web --firmware uefi --disk system.raw && kvmkit secureboot enroll web

There is no screen or network start yet.
"""

NETWORKS = """
Networks (--net KIND[=NAME][,mac=ADDRESS][,queues=N][,mtu=N][,bps=N][,iops=N], as often as needed)

  user            the host's network, by passt and without root: the guest is 10.0.2.15
  tap=NAME        a TAP device of the host's
  bridge=NAME     a bridge of the host's (as root)
  network=NAME    one of `kvmkit network create NAME` (as root): VMs on it find each other by name
  socket=PATH     a UNIX stream socket, as of passt or QEMU's -netdev stream
  switch=NAME     a switch of your VMs; each has an address of 169.254.0.0/16
  none            no card

  --publish [ADDRESS:]PORT:GUEST-PORT[/udp]   with user: a port of the host's (127.0.0.1) leads to the guest
  --policy all|deny|dns|allow=ADDRESS[/BITS][:PORT],...   what the guest may send

With `user,loopback` the guest reaches what listens on the host's 127.0.0.1 at 10.0.2.2. In the guest the cards are
eth0, eth1 and so on; its kernel needs CONFIG_VIRTIO_NET.

  kvmkit run --net user --publish 8080:80 -- httpd -f
  kvmkit run --net switch=lab --detach --name a
  kvmkit set a --policy allow=192.0.2.1:443,dns
  kvmkit set a --net 0,link=down
"""

IMAGES = """
Images (kvmkit run IMAGE; kvmkit image)

  debian    a real Debian on a root disk, built on first use of this machine's apt sources; the default
  tiny      busybox in an initramfs: the shortest boot
  NAME      one of your own: kvmkit image build, pull or import

KVMKIT_IMAGE names another default. The root disk is shared and only read; what a VM changes is in its memory, or, when
the VM is kept (--name) or --root-size is given, on a disk of its own, which goes with it.
"""

TOPICS: dict[str, Topic] = {
    "exit-status": Topic("what each exit status means", EXIT_STATUS),
    "engines": Topic("kvm and tcg, and which is taken", ENGINES),
    "kernels": Topic("which kernels can be started, and how", KERNELS),
    "firmware": Topic("starting a disk by its own boot loader", FIRMWARE),
    "images": Topic("what VMs are made of, and where their changes are", IMAGES),
    "disks": Topic("disks of a guest: files and block devices", DISKS),
    "networks": Topic("network cards, and what they are connected to", NETWORKS),
    "files": Topic("where kvmkit keeps things", FILES),
}
