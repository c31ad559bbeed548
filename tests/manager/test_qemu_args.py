"""QEMU's command line, translated: by each option what a user means by it, and by name what we don't have."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmkit
from kvmkit.errors import BadInput
from kvmkit.machine.limits import Limits
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import ConsolePort
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.manager.description import Disk, Forward, Memory, Network, Serial
from kvmkit.manager.fit import differing, fitted_disks, lacking
from kvmkit.manager.qemu_args import parse
from kvmkit.manager.qemu_options import ARGUMENTS, FLAGS, OTHER_ARGUMENTS, OTHER_FLAGS, split_commas
from kvmkit.manager.translate import to_description, to_spec

MIB = 1 << 20


def words(text: str) -> list[str]:
    return text.split()


def test_the_pages_line_enable_kvm_cpu_host() -> None:
    found = parse(words("-enable-kvm -cpu host"))
    assert (found.accel, found.cpu, found.memory.size) == ("kvm", "host", 128 * MIB)


def test_the_pages_line_enable_kvm_m_1024_mem_path_hda() -> None:
    found = parse(words("-enable-kvm -m 1024 -mem-path /dev/hugepages -hda disk.img"))
    assert found.accel == "kvm"
    assert found.memory == Memory(size=1024 * MIB, path="/dev/hugepages")
    assert found.disks == (Disk(path="disk.img", bus="ide"),)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("-accel kvm", "accel", "kvm"),
        ("-accel kvm -accel tcg", "accel", "auto"),
        ("-machine q35,accel=tcg", "accel", "tcg"),
        ("-M pc-q35-7.2", "board", "q35"),
        ("-machine pc-i440fx-7.2,usb=off", "board", "pc"),
        ("--machine type=microvm", "board", "microvm"),
        ("-cpu host,migratable=off", "cpu", "host"),
        ("-cpu qemu64,avx=on,-svm,+aes", "cpu", "qemu64,+avx,-svm,+aes"),
        ("-smp 4", "cpus", 4),
        ("-smp cpus=8,sockets=1,cores=4,threads=2", "cpus", 8),
        ("-smp sockets=2,cores=2", "cpus", 4),
        ("-m 2G", "memory", Memory(size=2048 * MIB)),
        ("-m size=1.5G", "memory", Memory(size=1536 * MIB)),
        ("-m 64 -mem-prealloc", "memory", Memory(size=64 * MIB, preallocate=True)),
        (
            "-m 1G -object memory-backend-file,id=r,size=1G,mem-path=/dev/hugepages,share=on -machine memory-backend=r",
            "memory",
            Memory(size=1024 * MIB, path="/dev/hugepages", shared=True),
        ),
        (
            "-m 1G -object memory-backend-memfd,id=r,size=1G,hugetlb=on,prealloc=on -numa node,memdev=r",
            "memory",
            Memory(size=1024 * MIB, hugepages=True, preallocate=True),
        ),
        ("-kernel bzImage", "kernel", "bzImage"),
        ("-initrd a,,b,c", "initrd", ("a,b", "c")),
        ("-name guest=web,debug-threads=on", "name", "web"),
        ("-name web", "name", "web"),
        ("-boot dc", "boot_order", "dc"),
        ("-boot order=c,strict=on", "boot_order", "c"),
        ("-nographic", "serials", (Serial(kind="stdio"),)),
        ("-serial mon:stdio", "serials", (Serial(kind="stdio"),)),
        ("-serial file:/tmp/a:b", "serials", (Serial(kind="file", path="/tmp/a:b"),)),
        ("-serial unix:/run/s,server=on,wait=off", "serials", (Serial(kind="unix", path="/run/s"),)),
        ("-serial none -nographic", "serials", ()),
        ("-vnc :1", "vnc", "127.0.0.1:5901"),
        ("-display vnc=unix:/run/vnc", "vnc", "unix:/run/vnc"),
        ("-display none", "display", "none"),
        ("-no-reboot", "reboot", False),
        ("-nodefaults", "defaults", False),
        ("-nic none", "defaults", False),
        ("-nic user,hostfwd=tcp::2222-:22", "networks", (
            Network(kind="user", forwards=(
                Forward(protocol="tcp", host_address="", host_port=2222, guest_address="", guest_port=22),)),)),
        ("-nic tap,ifname=tap0,script=no", "networks", (Network(kind="tap", interface="tap0"),)),
        ("-netdev bridge,id=n,br=virbr0 -device virtio-net,netdev=n,mac=52:54:00:AA:00:01", "networks", (
            Network(kind="bridge", interface="virbr0", mac="52:54:00:aa:00:01"),)),
        ("-drive file=a,if=virtio,format=raw,cache=none", "disks", (Disk(path="a", format="raw", cache="none"),)),
        ("-cdrom a.iso", "disks", (Disk(path="a.iso", bus="ide", media="cdrom", readonly=True),)),
        ("-hdb b -hda a", "disks", (Disk(path="a", bus="ide"), Disk(path="b", bus="ide"))),
        ("disk.img", "disks", (Disk(path="disk.img", bus="ide"),)),
        ("-snapshot -hda a", "disks", (Disk(path="a", bus="ide", snapshot=True),)),
        ("-drive if=none,id=d,file=a,format=qcow2 -device virtio-blk-pci,drive=d,serial=X,bootindex=1", "disks", (
            Disk(path="a", format="qcow2", serial="X", boot_index=1),)),
        ("-device virtio-blk,drive=d -drive if=none,id=d,file=a", "disks", (Disk(path="a"),)),
        ("-blockdev driver=file,node-name=f,filename=a -blockdev qcow2,node-name=q,file=f -device virtio-blk,drive=q",
            "disks", (Disk(path="a", format="qcow2"),)),
        ('-blockdev {"driver":"raw","node-name":"q","file":{"driver":"file","filename":"a"},"read-only":true} '
            "-device virtio-scsi-pci,id=s -device scsi-cd,drive=q,bus=s.0", "disks",
            (Disk(path="a", format="raw", bus="scsi", media="cdrom", readonly=True),)),
        ("-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r", "rng", True),
        ("-device virtio-balloon-pci", "balloon", True),
        ("-device vhost-vsock-pci,guest-cid=3", "vsock", 3),
        ("-device virtio-gpu-pci -device virtio-tablet-pci", "input", ("tablet",)),
        ("-chardev stdio,id=s,mux=on -serial chardev:s", "serials", (Serial(kind="stdio"),)),
        ("-device isa-serial,chardev=f -chardev file,id=f,path=/log", "serials", (Serial(kind="file", path="/log"),)),
        ("-chardev socket,id=q,path=/q,server=on,wait=off -device virtio-serial"
            " -device virtserialport,chardev=q,name=org.qemu.guest_agent.0", "ports",
            (ConsolePort(name="org.qemu.guest_agent.0", path="/q"),)),
        ("-device virtconsole,chardev=q -chardev socket,id=q,path=/q,server=on,wait=off", "ports",
            (ConsolePort(name="hvc0", path="/q"),)),
        ("-device vhost-user-fs-pci,chardev=f,tag=t -chardev socket,id=f,path=/f", "vhost_user",
            (VhostUser(kind="fs", socket="/f", tag="t"),)),
        ("-chardev socket,id=f,path=/f -netdev vhost-user,id=n,chardev=f -device virtio-net,netdev=n", "vhost_user",
            (VhostUser(kind="net", socket="/f"),)),
        ("-object memory-backend-file,id=p,share=on,mem-path=/p,size=64M -device nvdimm,memdev=p"
            " -m 128M,slots=2,maxmem=1G -machine pc,nvdimm=on", "pmem", (Pmem(path="/p"),)),
        ("-object memory-backend-file,id=p,mem-path=/p,size=64M -device virtio-pmem-pci,memdev=p", "pmem",
            (Pmem(path="/p", readonly=True),)),
        ("-device virtio-rng-pci,max-bytes=1024,period=500", "rng_limits", Limits(bps=2048, bps_burst=1024)),
        ("-drive file=a,if=virtio,bps=1000,bps_max=5000,bps_max_length=2", "disks",
            (Disk(path="a", bps=1000, bps_burst=10000),)),
        ("-object throttle-group,id=g,x-iops-total=9 -blockdev file,node-name=f,filename=a"
            " -blockdev throttle,node-name=t,file=f,throttle-group=g -device virtio-blk,drive=t", "disks",
            (Disk(path="a", format="raw", iops=9),)),
        ("-netdev passt,id=n,tcp-ports=2222:22 -device virtio-net,netdev=n", "networks", (
            Network(kind="user", forwards=(
                Forward(protocol="tcp", host_address="", host_port=2222, guest_address="", guest_port=22),)),)),
        ("-device isa-debug-exit,iobase=0xf4,iosize=0x04", "debug_exit", True),
        ("-daemonize -pidfile /run/p", "pidfile", "/run/p"),
    ],
)  # fmt: skip
def test_what_it_means(text: str, field: str, value: object) -> None:
    assert getattr(parse(words(text)), field) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-device e1000", "virtio-net-pci"),
        ("-device nvme,drive=d", "virtio-blk-pci"),
        ("-device usb-tablet", "virtio-tablet-pci"),
        ("-netdev socket,id=n,listen=:1", "-netdev stream"),
        ("-netdev vde,id=n", "--net switch=NAME"),
        ("-chardev spicevmc,id=c", "socket"),
        ("-chardev socket,id=c,host=h,port=1", "UNIX socket"),
        ("-device virtserialport,chardev=c,name=a", "no -chardev has id=c"),
        ("-chardev null,id=c -device virtserialport,chardev=c,name=a", "server=on,wait=off"),
        ("-chardev socket,id=c,path=/c -serial chardev:c", "server=on,wait=off"),
        ("-chardev socket,id=c,path=/c,server=on,wait=off -device vhost-user-fs-pci,chardev=c,tag=t", "path=PATH"),
        ("-chardev null,id=c -serial chardev:c -serial chardev:c", "a user already"),
        ("-drive file=a,if=virtio,throttling.bps-read=5", "throttling.bps-total"),
        ("-drive file=a,if=virtio,iops_wr=5", "throttling.iops-total"),
        ("-drive file=a,if=virtio,bps=5,group=g", "each disk has limits of its own"),
        ("-device nvdimm,memdev=m", "memory-backend-file"),
        ("-device virtio-sound-pci", "virtio-blk"),
        ("-virtfs local,path=/a,mount_tag=t,security_model=none", "vhost-user-fs-pci"),
        ("-device VGA", "-nographic"),
        ("-display gtk", "-nographic"),
        ("-machine q35,usb=on", "need no USB"),
        ("-machine acpi=off", "described by ACPI"),
        ("-cpu host,hv-passthrough", "not Hyper-V's"),
        ("-boot menu=on", "bootindex="),
        ("-drive if=none,id=d,file=a -device virtio-blk,drive=d,logical_block_size=4096", "512 bytes"),
        ("-device vfio-pci,host=01:00.0", "can't be passed through"),
        ("-nic user,model=e1000", "virtio-net-pci"),
        ("-net nic", "-nic user"),
        ("-accel hvf", "kvm and tcg"),
        ("-machine virt", "pc, q35 and microvm"),
        ("-cpu host,vendor=AuthenticAMD", "+NAME and -NAME"),
        ("-m 1G,maxmem=4G", "maxmem=4G"),
        ("-smp 2,maxcpus=4", "maxcpus=4"),
        ("-smp 4,cores=3", "3 CPUs, not 4"),
        ("-m lots", "is no size"),
        ("-m", "needs an argument"),
        ("-foo", "no such option"),
        ("-enable-kwm", "did you mean -enable-kvm"),
        ("-drive if=none,file=a", "needs an id="),
        ("-drive file=nbd:localhost:10809", "qemu-storage-daemon"),
        ("-drive file=a,colour=red", "colour=red"),
        ("-device virtio-blk-pci,drive=x", "named x"),
        ("-device virtio-net-pci,netdev=x", "id=x"),
        ("-drive if=none,id=d,file=a -device virtio-blk,drive=d -device virtio-blk,drive=d", "a device already"),
        ("-hda a -drive file=b,index=0", "two drives"),
        ("-netdev user,id=n,hostfwd=tcp::x-:22", "tcp::2222-:22"),
        ("-netdev l2tpv3,id=n", "user, passt, tap, bridge, stream and vhost-user"),
        ("-netdev passt,id=n,tcp-ports=1-9", "single ports"),
        ("-rtc base=localtime", "UTC"),
        ("-vga std", "-nographic"),
        ("-boot a", "floppy"),
        ("-tpmdev emulator,id=t", "no TPM"),
        ("-blockdev {", "-blockdev"),
        ("-object secret,id=s", "-object secret"),
        ("-m 1G -object memory-backend-ram,id=r,size=2G -machine memory-backend=r", "-object r"),
    ],
)
def test_what_there_is_not_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse(words(text))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", sorted(OTHER_FLAGS) + sorted(OTHER_ARGUMENTS))
def test_every_option_we_do_not_have_says_what_to_do(option: str) -> None:
    with pytest.raises(BadInput, match=f"-{option}: kvmkit does not have it; ."):
        parse([f"-{option}", "x"])


options = st.sampled_from(sorted(f"-{name}" for name in FLAGS | ARGUMENTS))
keys = st.sampled_from("file if id driver drive node-name netdev type size cpus index filename hostfwd media".split())
values = st.one_of(
    st.text(max_size=8), st.sampled_from("none virtio user tap 1 1G a d on off raw qcow2 kvm {} :".split())
)
argument = st.one_of(
    st.text(max_size=20),
    st.lists(st.builds("{}={}".format, keys, values), max_size=4).map(",".join),
    st.builds("{},{}={}".format, values, keys, values),
    st.just('{"driver": {"a": [1, null]}, "node-name": 3}'),
)


@given(st.lists(st.one_of(options, argument), max_size=8))
def test_any_words_are_understood_or_refused(line: list[str]) -> None:
    told = ""
    try:
        parse(line)
    except BadInput as refused:
        told = str(refused)
    assert told == "" or told.startswith("qemu")
    assert told.isprintable()


@given(st.text(alphabet="ab,=", max_size=12))
def test_two_commas_are_one_of_the_value(text: str) -> None:
    assert split_commas(text.replace(",", ",,")) == [text]


def run(*line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmkit.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", "kvmkit", "qemu", *line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


def kernel_that_says(path: Path, text: bytes, status: int) -> Path:
    """A multiboot kernel: writes `text` to the first serial port and ends by port 0xf4."""
    start = 0x100000
    code = b"".join(bytes([0x66, 0xBA, 0xF8, 0x03, 0xB0, byte, 0xEE]) for byte in text)  # mov dx,0x3f8; mov al; out
    code += bytes([0x66, 0xBA, 0xF4, 0x00, 0xB0, status, 0xEE, 0xF4])  # the same to 0xf4; hlt
    magic, flags = 0x1BADB002, 1 << 16
    end = start + 32 + len(code)
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, start, start, end, end, start + 32)
    path.write_bytes(header + code)
    return path


def test_enforce_refuses_a_model_that_the_host_lacks_something_of(tmp_path: Path) -> None:
    kernel = kernel_that_says(tmp_path / "kernel", b"hello", 3)
    line = ("-accel", "tcg", "-nographic", "-device", "isa-debug-exit", "-kernel", str(kernel))
    done = run(*line, "-cpu", "SapphireRapids,enforce")
    assert done.returncode == 2
    assert "this host lacks" in done.stderr
    assert "avx" in done.stderr
    assert run(*line, "-cpu", "max,enforce").returncode == 7


def test_sockets_and_threads_are_told_of() -> None:
    told = " ".join(differing(parse(words("-smp 8,sockets=2,cores=2,threads=2 -kernel k"))))
    assert "8 CPUs as cores of one socket" in told
    assert "socket" not in " ".join(differing(parse(words("-smp 8,sockets=1,cores=8,threads=1 -kernel k"))))


def test_it_runs(tmp_path: Path) -> None:
    kernel = kernel_that_says(tmp_path / "kernel", b"hello", 3)
    line = ("-accel", "tcg", "-m", "64", "-nographic", "-device", "isa-debug-exit", "-kernel", str(kernel))
    done = run(*line)
    assert done.stdout == "hello"
    assert done.returncode == 3 << 1 | 1, done.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "a start without a kernel or a disk; nearest: -kernel FILE"),
        ("-hda a -append quiet", "-initrd and -append for a kernel on a disk; nearest: its boot loader's own"),
        ("-hda a -boot n", "a start from the network (-boot n); nearest: -boot c (disk)"),
        ("-hda a -drive if=pflash,file=/code.fd", "the firmware /code.fd; nearest: "),
        ("-kernel k -bios b", "the firmware b before -kernel; nearest: without -bios"),
        ("-hda a -vnc :0", "VNC at 127.0.0.1:5900"),
    ],
)
def test_what_the_machine_lacks_is_named_before_anything_starts(line: str, named: str) -> None:
    [text] = lacking(parse(words(line)))
    assert named in text
    done = run(*words(line))
    assert done.returncode == 2
    assert text in done.stderr


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("-hda a -hdb b", ()),
        ("-hda a -cdrom c -boot d", (1,)),
        ("-hda a -cdrom c -boot cdn", (0, 1)),
        ("-drive if=none,id=x,file=a -drive if=none,id=y,file=b -device virtio-blk,drive=x"
            " -device virtio-blk,drive=y,bootindex=1", (1,)),
        ("-cdrom c -drive if=none,id=y,file=b -device scsi-hd,drive=y,bootindex=3", (0,)),
    ],
)  # fmt: skip
def test_the_boot_order_becomes_the_machines(line: str, order: tuple[int, ...]) -> None:
    assert to_spec(parse(words(line))).boot_order == order


@pytest.mark.parametrize(
    ("line", "disks", "scsi"),
    [
        ("-hda a -hdb b", "ab", ""),
        ("-drive file=a,format=raw,if=virtio -cdrom c", "a", "c"),
        ("-drive if=none,id=d,file=a -device virtio-blk,drive=d -drive if=none,id=e,file=b -device scsi-hd,drive=e",
            "a", "b"),
    ],
)  # fmt: skip
def test_disks_become_the_machines(line: str, disks: str, scsi: str) -> None:
    description = parse(words(f"-kernel k {line}"))
    assert lacking(description) == []
    blk, units = fitted_disks(description)
    assert "".join(disk.path for disk in blk) == disks
    assert "".join(disk.path for disk in units) == scsi
    assert all(unit.cdrom for unit in units if unit.path == "c")


def test_an_image_that_is_not_raw(tmp_path: Path) -> None:
    """As a virtio disk it is served; on SCSI, or of a format that nothing here reads, it is named."""
    image, old = tmp_path / "web.qcow2", tmp_path / "old.vhd"
    image.write_bytes(b"QFI\xfb" + bytes(508))
    old.write_bytes(b"conectix" + bytes(504))
    for line in (f"-hda {image}", f"-drive file={image},if=virtio,format=qcow2"):
        assert lacking(parse(words(f"-kernel k {line}"))) == []
    [disk], _ = fitted_disks(parse(words(f"-drive file={image},if=virtio,format=qcow2")))
    assert disk.format == "qcow2"
    for line in (f"-cdrom {image}", f"-hda {old}", f"-drive file={image},if=scsi"):
        [text] = lacking(parse(words(f"-kernel k {line}")))
        assert "qemu-img convert -O raw" in text
    [text] = lacking(parse(words(f"-kernel k -hda {image} -snapshot")))
    assert f"kvmkit disk create changes.qcow2 --base {image}" in text


@pytest.mark.guest
def test_the_pages_line_with_a_disk_image(tmp_path: Path) -> None:
    """-m 1024 -mem-path DIR -hda DISK, where the disk has a boot loader: the guest starts, finds its disk and ends."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "machine"))
    from bootable import linux_disk

    from kvmkit.guest import images

    image = images.ensure()
    append = f"console=ttyS0 {image.append} panic=-1 kvmkit.channel=console quiet"
    disk = linux_disk(tmp_path, image.kernel, image.initrd, append)
    program = [sys.executable, "-m", "kvmkit", "qemu", "-accel", "tcg", "-m", "1024", "-mem-path", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmkit.__file__).parent.parent)}
    # The shell asks where the cursor is, and takes what comes for the answer.
    script = b"\x1b[1;1Recho size $(cat /sys/block/vda/size) end; dmesg | grep BIOS-e820 | wc -l; poweroff -f\n"
    with subprocess.Popen([*program, "-hda", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment) as guest:  # fmt: skip
        assert guest.stdin is not None
        assert guest.stdout is not None
        said = b""
        while b"\x1b[6n" not in said and (data := os.read(guest.stdout.fileno(), 4096)):
            said += data
        try:
            out, err = guest.communicate(script, timeout=60)
        finally:
            guest.kill()
    assert b"SeaBIOS" in said
    assert b"SYSLINUX" in said
    assert b"size 131072 end\r\n6\r\n" in out, (out[-500:], err)
    assert b"there is no IDE" in err


def test_help_is_ours() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "kvmkit qemu" in done.stdout


def test_networks_become_cards() -> None:
    from kvmkit.machine import Network as Card
    from kvmkit.manager.fit import LOCAL

    words = "-nic user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.15:5353,restrict=on,mac=52:54:00:00:00:01"
    description = parse([*words.split(), "-kernel", "k"])
    assert [text for text in lacking(description) if "hostfwd" in text or "network" in text] == []
    spec = to_spec(description)
    ports = ("0.0.0.0:2222:22/tcp", "127.0.0.1:53:5353/udp")
    assert spec.networks == (Card(kind="user", mac="52:54:00:00:00:01", publish=ports),)
    assert spec.policy == LOCAL
    back, _ = to_description(spec)
    assert back.networks[0].restrict
    assert [forward.host_port for forward in back.networks[0].forwards] == [2222, 53]
    words = "-netdev stream,id=a,server=off,addr.type=unix,addr.path=/run/p -device virtio-net-pci,netdev=a"
    words += " -nic tap,ifname=t"
    spec = to_spec(parse([*words.split(), "-kernel", "k"]))
    assert spec.networks == (Card(kind="tap", name="t"), Card(kind="socket", name="/run/p"))
    assert to_spec(parse(["-kernel", "k", "-nic", "none"])).networks == ()
    (text,) = (t for t in lacking(parse("-kernel k -nic user,hostfwd=tcp::1-10.0.2.16:2".split())) if "hostfwd" in t)
    assert "10.0.2.15" in text
