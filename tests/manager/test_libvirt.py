"""libvirt's domain XML, both ways: what has no counterpart is named, and what we write is valid."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmkit as package
from kvmkit import machine
from kvmkit.boot import uefi
from kvmkit.errors import BadInput
from kvmkit.machine.limits import Limits
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import ConsolePort
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.machine.volume import Volume
from kvmkit.manager.description import Description, Disk, Firmware, Memory, Network, Serial
from kvmkit.manager.fit import lacking
from kvmkit.manager.libvirt import read_domain
from kvmkit.manager.libvirt_write import write_domain
from kvmkit.manager.qemu_args import parse
from kvmkit.manager.qemu_write import write_qemu
from kvmkit.manager.spec import VmSpec
from kvmkit.manager.specfile import read_spec
from kvmkit.manager.toml import read_toml, write_toml
from kvmkit.manager.translate import to_description, to_spec, write_spec

GIB = 1 << 30

# A domain as virt-install writes it, with the page's settings: host-passthrough, huge pages, Secure Boot.
DOMAIN = """
<domain type='kvm'>
  <name>web</name>
  <uuid>6c0b7a5e-3d0c-4f0e-9a38-0d9f1a2b3c4d</uuid>
  <metadata><x:os xmlns:x="http://example.org/x" id="y"/></metadata>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static'>2</vcpu>
  <os firmware="efi">
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly="yes" secure="yes" type="pflash">/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd</loader>
    <nvram template="/usr/share/edk2/x64/OVMF_VARS.4m.fd">/var/lib/libvirt/qemu/nvram/web_SECURE_VARS.fd</nvram>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/><smm state='on'/><hyperv mode='custom'><relaxed state='on'/></hyperv></features>
  <cpu mode='host-passthrough' check='partial'/>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/var/lib/libvirt/images/web.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'><source protocol='rbd' name='a/b'/><target dev='vdb' bus='virtio'/></disk>
    <controller type='usb' model='qemu-xhci'/><controller type='pci' model='pcie-root'/>
    <interface type='bridge'>
      <mac address='52:54:00:12:34:56'/><source bridge='br0'/><model type='virtio'/>
    </interface>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <interface type='direct'><source dev='eth0' mode='bridge'/><model type='virtio'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <graphics type='vnc' port='5901'><listen type='address' address='127.0.0.1'/></graphics>
    <video><model type='virtio'/></video>
    <sound model='ich9'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
  </devices>
</domain>
"""


def test_virsh_edit_cpu_mode_host_passthrough_check_partial() -> None:
    assert read_domain(DOMAIN, "web.xml").description.cpu == "host"


def test_memory_backing_hugepages() -> None:
    assert read_domain(DOMAIN, "web.xml").description.memory == Memory(size=GIB, hugepages=True)


@pytest.mark.parametrize(
    ("pages", "page", "left"),
    [
        ("", "", 0),
        ('<page size="1" unit="G"/>', "1G", 0),
        ('<page size="2048"/>', "2M", 0),
        ('<page size="2048" nodeset="0"/>', "", 1),
        ('<page size="16" unit="M"/>', "", 1),
        ('<page size="2" unit="M"/><page size="1" unit="G"/>', "2M", 1),
    ],
)
def test_the_size_of_huge_pages(pages: str, page: str, left: int) -> None:
    text = re.sub(r"<hugepages.*?/>", f"<hugepages>{pages}</hugepages>", DOMAIN, count=1)
    found = read_domain(text, "web.xml")
    assert found.description.memory == Memory(size=GIB, hugepages=True, page=page)  # type: ignore[arg-type] # one of three
    assert sum("hugepages/page" in line for line in found.unlisted) == left
    assert to_spec(found.description).hugepages == (page or "default")


def test_the_rest_of_a_domain() -> None:
    found = read_domain(DOMAIN, "web.xml").description
    assert (found.name, found.cpus, found.board, found.accel) == ("web", 2, "q35", "kvm")
    assert found.disks == (Disk(path="/var/lib/libvirt/images/web.qcow2", format="qcow2", cache="none"),)
    assert found.networks == (
        Network(kind="bridge", interface="br0", mac="52:54:00:12:34:56"),
        Network(kind="network", interface="default"),
    )
    assert found.ports == (ConsolePort(name="org.qemu.guest_agent.0"),)
    assert found.serials == (Serial(kind="stdio"),)  # `virsh console` is `kvmkit console`
    assert (found.display, found.vnc, found.graphics) == ("vnc", "127.0.0.1:5901", True)
    assert (found.rng, found.balloon, found.boot_order) == (True, True, "c")


@pytest.mark.parametrize(
    "named",
    [
        "devices/sound",
        "devices/tpm",
        "devices/hostdev",
        "devices/channel type='spicevmc'",
        "devices/disk type='network'",
        "devices/interface type='direct'",
        "devices/controller type='usb'",
        "domain/features/hyperv",
        "domain/clock/timer name='rtc'",
    ],
)
def test_what_has_no_counterpart_is_listed(named: str) -> None:
    assert any(text.startswith(named) for text in read_domain(DOMAIN, "web.xml").unlisted)


def test_nothing_that_has_one_is_listed() -> None:
    told = " ".join(read_domain(DOMAIN, "web.xml").unlisted)
    for name in ("emulator", "metadata", "acpi", "type='pci' model", "pcie-root", "memballoon", "video", "console"):
        assert f"/{name}" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<domain", "is no XML"),
        ("<network/>", "not a libvirt <domain>"),
        ("<domain type='xen'/>", "domain type 'xen'"),
        ("<domain type='kvm'><os><type>hvm</type></os></domain>", "no <memory>"),
        ("<domain type='kvm'><memory>much</memory><os><type>hvm</type></os></domain>", "no size"),
        ("<domain type='kvm'><memory>1024</memory><os><type arch='aarch64'>hvm</type></os></domain>", "x86 PC"),
        ("<domain type='kvm'><memory>1024</memory><vcpu>0</vcpu><os><type>hvm</type></os></domain>", "<vcpu>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>", "document type"),
        ("<a>" * 100, "nested deeper"),
    ],
)
def test_what_is_no_domain_is_one_line(text: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_domain(text, "x.xml")
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def validate(xml: str, path: Path) -> None:
    if shutil.which("virt-xml-validate") is None:
        pytest.skip("virt-xml-validate is not installed (libvirt-clients)")
    path.write_text(xml)
    done = subprocess.run(["virt-xml-validate", str(path), "domain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + xml


LINES = [
    "-enable-kvm -m 1024 -mem-path /dev/hugepages -hda disk.img",
    "-M q35 -cpu EPYC,+aes,-svm -smp 4 -drive if=pflash,file=C.fd -drive if=pflash,file=V.fd -hda a -cdrom b",
    "-pflash C.fd -drive if=pflash,unit=1,file=V.fd,snapshot=on -global cfi.pflash01.secure=on -kernel k",
    "-kernel k -initrd i -append console=ttyS0 -nographic -nic tap,ifname=t0 -nic bridge,br=br0 -nic user",
    "-drive if=none,id=d,file=/dev/sdb,format=raw,cache=none -device virtio-blk,drive=d,bootindex=3,serial=S",
    "-snapshot -hda a -hdb b",
    "-drive if=none,id=d,file=a -device scsi-hd,drive=d -device virtio-rng -device virtio-balloon -vnc :1 -vga virtio",
    "-device vhost-vsock-pci,guest-cid=7 -serial file:/s -serial unix:/u,server -serial null -serial pty -boot cd",
    "-vnc unix:/v -device virtio-tablet-pci -device virtio-keyboard-pci -bios B.fd -no-reboot -cpu host -name a&b<c>",
    "-uuid 6c0b7a5e-3d0c-4f0e-9a38-0d9f1a2b3c4d -m 1G -object memory-backend-memfd,id=m,size=1G,hugetlb=on,share=on,"
    "prealloc=on -machine memory-backend=m -accel tcg -cpu max",
    "-chardev socket,id=c,path=/s,server=on,wait=off -device virtserialport,chardev=c,name=org.qemu.guest_agent.0"
    " -chardev socket,id=h,path=/h,server=on,wait=off -device virtconsole,chardev=h",
    "-chardev socket,id=f,path=/f -device vhost-user-fs-pci,chardev=f,tag=work -chardev socket,id=n,path=/n"
    " -netdev vhost-user,id=n,chardev=n -device virtio-net-pci,netdev=n,mac=52:54:00:00:00:01"
    " -chardev socket,id=b,path=/b -device vhost-user-blk-pci,chardev=b,num-queues=2"
    " -object memory-backend-memfd,id=m,size=128M,share=on -machine memory-backend=m",
    "-drive file=a,format=raw,if=none,id=d,throttling.bps-total=1000000,throttling.iops-total=100,"
    "throttling.iops-total-max=500 -device virtio-blk-pci,drive=d,num-queues=2"
    " -device virtio-rng-pci,max-bytes=1024,period=1000",
]


@pytest.mark.parametrize("line", LINES)
def test_virt_xml_validate_accepts_what_we_write(line: str, tmp_path: Path) -> None:
    xml, _ = write_domain(parse(line.split()))
    validate(xml, tmp_path / "d.xml")


def test_virt_xml_validate_accepts_the_domain_read_above(tmp_path: Path) -> None:
    validate(DOMAIN.strip(), tmp_path / "read.xml")
    validate(write_domain(read_domain(DOMAIN, "web.xml").description)[0], tmp_path / "written.xml")


def test_a_written_spec_says_only_what_was_asked(tmp_path: Path) -> None:
    spec = to_spec(parse("-accel tcg -m 1G -hda a -cdrom c -boot d -serial file:/s -pidfile /p".split()))
    text = write_spec(spec)
    assert "queues" not in text
    assert "rng_limits" not in text
    assert 'path = "a"' in text
    file = tmp_path / "vm.toml"
    file.write_text(text)
    assert read_spec(str(file)) == spec


SET: dict[str, object] = {
    "name": "web", "image": "debian", "kernel": "/k", "initrd": ("/i",), "firmware": "/bios.bin", "append": "quiet",
    "accel": "tcg", "cpu": "EPYC", "cpus": 3, "nested": True, "transport": "pci", "memory": "1G", "hugepages": "1G",
    "memory_path": "/dev/hugepages", "preallocate": True, "disks": (machine.Disk(path="a"),),
    "scsi": (machine.ScsiDisk(path="c", cdrom=True),), "rng": True, "vsock": 7, "command": ("ls",), "serial": "file:/s",
    "pidfile": "/p", "debug_exit": True, "reboot": False, "timeout": 3.0,
    "vhost_user": (VhostUser(kind="blk", socket="/s"),), "volumes": (Volume(host="/h", guest="/g"),),
    "rng_limits": Limits(bps=5.0), "input": ("tablet",), "balloon": True, "policy": "deny", "root_size": "20G",
    "nvram": "/v.fd", "nvram_template": "/t.fd", "secure_boot": True,
    "console_ports": (ConsolePort(name="a.b"),), "networks": (machine.Network(kind="network", name="lab"),),
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(SET.keys() & set(VmSpec.__struct_fields__)))
def test_no_field_of_a_vm_is_dropped_silently(field: str) -> None:
    """It is in what is written for QEMU and for libvirt, or it is listed."""
    base = {"kernel": "/kernel"}
    if field in ("nvram", "nvram_template", "secure_boot"):
        if not os.path.exists(uefi.OVMF[0].code):
            pytest.skip("OVMF is not installed")
        base["firmware"] = "uefi"
    plain, _ = to_description(VmSpec(**base))
    described, left = to_description(VmSpec(**{**base, field: SET[field]}))
    if field == "image":
        _, left = to_description(VmSpec(image="debian"))
    in_qemu = write_qemu(described) != write_qemu(plain)
    xml, more = write_domain(described)
    in_xml = xml != write_domain(plain)[0]
    assert in_qemu or left, "QEMU's words leave it out silently"
    assert in_xml or left or more, "libvirt's XML leaves it out silently"


def test_there_and_back() -> None:
    found = read_domain(DOMAIN, "web.xml").description
    xml, left = write_domain(found)
    again = read_domain(xml, "again.xml")
    assert again.description == found
    assert left == []
    assert again.unlisted == ()


# What virt-install, virt-manager and hand-written domains have beside: one of each kind of device that ours has.
DEVICES = """
<domain type='kvm'>
  <name>lab</name><memory unit='MiB'>512</memory><vcpu>2</vcpu>
  <maxMemory slots='16' unit='MiB'>2048</maxMemory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <cpu mode='host-passthrough' check='none'><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' queues='2'/><source file='/a.raw'/><target dev='vda' bus='virtio'/>
      <iotune><total_bytes_sec>1000000</total_bytes_sec><total_iops_sec>100</total_iops_sec>
        <total_iops_sec_max>200</total_iops_sec_max><total_iops_sec_max_length>3</total_iops_sec_max_length></iotune>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/b.raw'/><target dev='vdb' bus='virtio'/>
      <iotune><read_iops_sec>5</read_iops_sec><write_iops_sec>0</write_iops_sec></iotune>
    </disk>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw'/><source type='unix' path='/blk.sock'/><target dev='vdc' bus='virtio'/>
    </disk>
    <filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs'/><source dir='/srv/share'/><target dir='share'/><readonly/>
    </filesystem>
    <filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs'/><source socket='/fs.sock'/><target dir='other'/>
    </filesystem>
    <filesystem type='mount' accessmode='mapped'><source dir='/srv/9p'/><target dir='old'/></filesystem>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <interface type='ethernet'><target dev='tap7' managed='no'/><model type='virtio'/></interface>
    <interface type='user'><backend type='passt'/>
      <portForward proto='tcp' address='127.0.0.1'><range start='2222' to='22'/></portForward></interface>
    <interface type='vhostuser'>
      <mac address='52:54:00:00:00:09'/><source type='unix' path='/net.sock' mode='client'/><model type='virtio'/>
    </interface>
    <console type='pty'><target type='virtio' port='1'/></console>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-1-lab/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <channel type='unix'><source mode='bind' path='/my.sock'/><target type='virtio' name='org.example.0'/></channel>
    <input type='tablet' bus='virtio'/><input type='keyboard' bus='virtio'/><input type='mouse' bus='ps2'/>
    <input type='tablet' bus='usb'/>
    <memballoon model='virtio'><stats period='5'/></memballoon>
    <rng model='virtio'><rate bytes='2048' period='500'/><backend model='random'>/dev/urandom</backend></rng>
    <vsock model='virtio'><cid auto='no' address='9'/></vsock>
    <memory model='virtio-pmem' access='shared'>
      <source><path>/pmem.raw</path></source><target><size unit='KiB'>4096</size></target>
    </memory>
  </devices>
</domain>
"""


def test_each_kind_of_device_becomes_ours() -> None:
    found = read_domain(DEVICES, "lab.xml")
    spec = to_spec(found.description)
    assert lacking(msgspec.structs.replace(found.description, firmware=Firmware())) == []
    assert [(disk.path, disk.queues, disk.bps, disk.iops, disk.iops_burst) for disk in spec.disks] == [
        ("/a.raw", 2, 1e6, 100, 600), ("/b.raw", 0, 0, 0, 0)]  # fmt: skip
    assert [(one.kind, one.socket, one.tag, one.mac) for one in spec.vhost_user] == [
        ("blk", "/blk.sock", "", ""),
        ("fs", "/fs.sock", "other", ""),
        ("net", "/net.sock", "", "52:54:00:00:00:09"),
    ]
    assert spec.volumes == (Volume(host="/srv/share", tag="share", readonly=True),)
    assert [(card.kind, card.name, card.publish) for card in spec.networks or ()] == [
        ("network", "default", ()), ("tap", "tap7", ()), ("user", "", ("127.0.0.1:2222:22/tcp",))]  # fmt: skip
    assert [(port.name, port.path) for port in spec.console_ports] == [
        ("hvc0", ""), ("org.qemu.guest_agent.0", ""), ("org.example.0", "/my.sock")]  # fmt: skip
    assert (spec.input, spec.balloon, spec.vsock) == (("tablet", "keyboard"), True, 9)
    assert (spec.rng, spec.rng_limits) == (True, Limits(bps=4096, bps_burst=2048))
    assert spec.pmem == (Pmem(path="/pmem.raw"),)
    assert [text.partition(" ")[0] for text in found.unlisted] == [
        "devices/disk/iotune/read_iops_sec:", "devices/filesystem", "devices/input"]  # fmt: skip


def test_each_kind_of_device_there_and_back(tmp_path: Path) -> None:
    """By libvirt's XML, which is valid, by QEMU's words and by TOML: the same machine each time."""
    pmem, share = tmp_path / "pmem.raw", tmp_path / "share"
    pmem.write_bytes(bytes(4 << 20))
    share.mkdir()
    text = DEVICES.replace("/pmem.raw", str(pmem)).replace("/srv/share", str(share))
    validate(text.strip(), tmp_path / "read.xml")
    spec = to_spec(read_domain(text, "lab.xml").description)
    described, left = to_description(spec)
    assert left == []
    xml, left = write_domain(described)
    validate(xml, tmp_path / "written.xml")
    again = read_domain(xml, "written.xml")
    assert again.unlisted == ()
    assert left == []
    assert to_spec(again.description) == spec
    (tmp_path / "lab.toml").write_text(write_spec(spec))
    assert read_spec(str(tmp_path / "lab.toml")) == spec
    words = to_spec(parse(write_qemu(described)))
    different = [name for name in spec.__struct_fields__ if getattr(words, name) != getattr(spec, name)]
    # QEMU has no networks of its own: the bridge; starts no virtiofsd: its socket; and names each socket.
    assert different == ["networks", "vhost_user", "volumes", "console_ports"]
    assert [card.name for card in words.networks or ()] == ["kvm-default", "tap7", ""]
    assert [(one.kind, one.tag) for one in words.vhost_user] == [
        *((one.kind, one.tag) for one in spec.vhost_user), ("fs", "share")]  # fmt: skip
    assert [port.name for port in words.console_ports] == [port.name for port in spec.console_ports]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed: qemu-system-x86")
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_qemu_takes_the_line_we_write(tmp_path: Path, transport: Literal["pci", "mmio"]) -> None:
    """Of a VM with a device of each kind that QEMU can have without another process: it gets as far as its monitor."""
    for name in ("disk.raw", "cd.iso", "pmem.raw"):
        (tmp_path / name).write_bytes(bytes(4 << 20))
    spec = VmSpec(
        name="lab", accel="tcg", memory="64M", firmware="bios", transport=transport, rng=True, balloon=True,
        rng_limits=Limits(bps=4096), input=("keyboard", "tablet"), pmem=(Pmem(path=str(tmp_path / "pmem.raw")),),
        boot_order=(0,), serial="null",
        disks=(machine.Disk(path="disk.raw", bps=1e6, iops=100, iops_burst=500, queues=2, serial="A"),),
        scsi=(machine.ScsiDisk(path="cd.iso", cdrom=True),), networks=(machine.Network(kind="user"),),
        console_ports=(ConsolePort(name="hvc0"), ConsolePort(name="org.qemu.guest_agent.0")),
    )  # fmt: skip
    described, left = to_description(spec)
    assert left == []
    line = ["qemu-system-x86_64", *write_qemu(described), "-S", "-monitor", "stdio"]
    done = subprocess.run(line, input="info name\nquit\n", cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "lab" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_balloon_on_huge_pages_is_left_out_and_named() -> None:
    """libvirt puts a balloon into every domain; memory on huge pages can't be given back."""
    found = read_domain(DOMAIN, "web.xml").description
    assert any("virtio-balloon with guest memory on huge pages" in text for text in lacking(found))
    assert not to_spec(found).balloon


def test_what_xml_can_not_hold_is_named() -> None:
    line = "-nic user,restrict=on -daemonize -pidfile /p -mem-path /dev/hugepages -device isa-debug-exit"
    _, left = write_domain(parse(line.split()))
    for word in ("restrict=on", "daemonize", "pidfile", "/dev/hugepages", "isa-debug-exit"):
        assert any(word in text for text in left)
    with pytest.raises(BadInput, match="XML"):
        write_domain(Description(name="a\x01b"))


@pytest.mark.parametrize("line", LINES)
def test_toml_there_and_back(line: str) -> None:
    found = parse(line.split())
    again = read_toml(write_toml(found), "x.toml")
    assert write_toml(again) == write_toml(found)
    for field in found.__struct_fields__:
        assert getattr(again, field) == getattr(found, field)


@given(st.builds(Description, name=st.text(max_size=9), append=st.text(max_size=9), cpus=st.integers(1, 99)))
def test_any_text_survives_toml(found: Description) -> None:
    try:
        again = read_toml(write_toml(found), "x.toml")
    except (BadInput, UnicodeEncodeError):
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in found.name + found.append)
    else:
        assert (again.name, again.append, again.cpus) == (found.name, found.append, found.cpus)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_domain_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(DOMAIN) - 1))
    length = data.draw(st.integers(0, 60))
    text = DOMAIN[:at] + data.draw(st.text(max_size=6)) + DOMAIN[at + length :]
    told = "x.xml"
    try:
        read_domain(text.strip(), "x.xml")
    except BadInput as refused:
        told = str(refused)
    assert told.startswith("x.xml")


@pytest.mark.parametrize(("text", "said"), [("a = ", "x.toml"), ("colour = 1", "colour"), ("cpus = 'two'", "cpus")])
def test_bad_toml_is_one_line(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_toml(text, "x.toml")


def kvmkit(*line: str, data: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}
    command = [sys.executable, "-m", "kvmkit", *line]
    return subprocess.run(command, input=data, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.parametrize("line", LINES)
def test_qemus_command_line_there_and_back(line: str) -> None:
    found = parse(line.split())
    again = parse(write_qemu(found))
    for field in found.__struct_fields__:
        if field not in ("defaults", "display", "snapshot"):  # told otherwise by what is asked for
            assert getattr(again, field) == getattr(found, field), field


def test_import_writes_a_file_that_run_reads_and_lists_what_is_left_out(tmp_path: Path) -> None:
    xml = tmp_path / "web.xml"
    xml.write_text(DOMAIN.strip())
    target = tmp_path / "web.toml"
    done = kvmkit("import", str(xml), "-o", str(target))
    assert (done.returncode, done.stdout) == (0, "")
    found = read_domain(DOMAIN.strip(), "web.xml")
    assert all(line in done.stderr for line in found.unlisted)
    spec = read_spec(str(target))
    assert (spec.name, spec.cpus) == (found.description.name, found.description.cpus)
    assert spec.cpu == (found.description.cpu or "max")
    assert bool(spec.hugepages) == found.description.memory.hugepages
    again = kvmkit("import", str(xml), "-o", str(target))
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert kvmkit("import", "-", data=DOMAIN.strip()).stdout == target.read_text()


def test_export_writes_what_virt_xml_validate_accepts_and_qemu_reads(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    file.write_text(
        'name = "web"\nkernel = "vmlinuz"\nappend = "console=ttyS0"\ncpu = "Haswell"\ncpus = 2\nmemory = "1G"\n'
        'hugepages = "default"\nrng = true\ntransport = "pci"\ntimeout = 5.0\n[[disks]]\npath = "disk.img"\n'
    )
    done = kvmkit("export", str(file), "--libvirt")
    assert done.returncode == 0, done.stderr
    assert "left out: timeout 5" in done.stderr
    validate(done.stdout, tmp_path / "web-out.xml")
    assert read_domain(done.stdout, "x").description.memory.hugepages
    line = kvmkit("export", str(file), "--qemu").stdout
    program, *words = shlex.split(line)
    assert program == "qemu-system-x86_64"
    found = parse(words)
    assert (found.cpu, found.cpus, found.memory.size, found.rng) == ("Haswell", 2, 1 << 30, True)
    assert [one.path for one in found.disks] == [str(disk)]
    toml = kvmkit("export", str(file), "--toml").stdout
    (tmp_path / "again.toml").write_text(toml)
    assert read_spec(str(tmp_path / "again.toml")) == read_spec(str(file)).absolute(tmp_path)


def test_export_of_what_is_not_there_is_one_line() -> None:
    for line in (("export", "nobody", "--qemu"), ("import", "/nonexistent.xml"), ("export", "/no.toml", "--toml")):
        done = kvmkit(*line)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1


def test_ports_of_a_user_network_both_ways() -> None:
    interface = """<interface type='user'><backend type='passt'/><mac address='52:54:00:00:00:01'/>
      <portForward proto='tcp'><range start='2022' to='22'/><range start='80' end='82'/></portForward>
      <portForward proto='udp' address='192.0.2.1'><range start='53'/></portForward></interface>"""
    text = re.sub(r"<interface type='bridge'>.*?</interface>", interface, DOMAIN, count=1, flags=re.DOTALL)
    found = read_domain(text, "web.xml")
    assert [line for line in found.unlisted if "portForward" in line or "backend" in line] == []
    ports = [
        (each.protocol, each.host_address, each.host_port, each.guest_port)
        for each in found.description.networks[0].forwards
    ]
    assert ports == [
        ("tcp", "", 2022, 22),
        ("tcp", "", 80, 80),
        ("tcp", "", 81, 81),
        ("tcp", "", 82, 82),
        ("udp", "192.0.2.1", 53, 53),
    ]
    written, _ = write_domain(found.description)
    assert read_domain(written, "again.xml").description.networks == found.description.networks
    with pytest.raises(BadInput, match="portForward: 0 to 22"):
        read_domain(text.replace("start='2022'", "start='0'"), "web.xml")
