"""UEFI as people ask QEMU and libvirt for it: flash images, their variables, Secure Boot; both ways."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import kvmkit as package
from kvmkit.boot import smm, uefi
from kvmkit.errors import BadInput
from kvmkit.manager.description import Description, Firmware
from kvmkit.manager.fit import differing, lacking
from kvmkit.manager.fit_firmware import NOT_KEPT
from kvmkit.manager.fit_uefi import kept_otherwise
from kvmkit.manager.libvirt import Imported, read_domain
from kvmkit.manager.libvirt_write import write_domain
from kvmkit.manager.qemu_args import parse
from kvmkit.manager.qemu_write import write_qemu
from kvmkit.manager.spec import VmSpec
from kvmkit.manager.translate import to_description, to_spec

OVMF = Path("/usr/share/OVMF")
CODE, SECBOOT = OVMF / "OVMF_CODE_4M.fd", OVMF / "OVMF_CODE_4M.secboot.fd"
VARS, KEYS, SMALL_VARS = OVMF / "OVMF_VARS_4M.fd", OVMF / "OVMF_VARS_4M.ms.fd", OVMF / "OVMF_VARS.fd"

pytestmark = pytest.mark.skipif(not SECBOOT.exists(), reason="OVMF is not installed, as Debian has it: ovmf")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Variables of a user's own."""
    return Path(shutil.copy(VARS, tmp_path / "VARS.fd"))


def asked(line: str) -> Description:
    return parse(f"-hda a {line}".split())


def started(description: Description) -> tuple[str, str, str, bool]:
    spec = to_spec(description)
    return spec.firmware, spec.nvram, spec.nvram_template, spec.secure_boot


def check(description: Description) -> None:
    """The firmware can be had, whether or not there is the disk."""
    msgspec.structs.replace(to_spec(description), disks=(), boot_order=()).check()


def of_firmware(description: Description) -> list[str]:
    """What differs, but for the disk and the window of `asked`."""
    return [text for text in differing(description) if "IDE" not in text and "window" not in text]


@pytest.mark.parametrize(
    "line",
    [
        "-drive if=pflash,format=raw,unit=0,readonly=on,file={code} -drive if=pflash,format=raw,unit=1,file={own}",
        "-drive if=pflash,format=raw,unit=1,file={own} -drive if=pflash,format=raw,unit=0,readonly=on,file={code}",
        "-drive if=pflash,readonly,file={code} -drive if=pflash,file={own}",
        "-drive if=pflash,index=1,file={own} -drive if=pflash,index=0,readonly,file={code}",
        "-pflash {code} -pflash {own}",
        "-machine q35,smm=on -global ICH9-LPC.disable_s3=1 -pflash {code} -pflash {own}",
        "-machine q35,pflash0=c,pflash1=v -blockdev node-name=c,driver=file,filename={code},read-only=on"
        " -blockdev node-name=f,driver=file,filename={own} -blockdev node-name=v,driver=raw,file=f",
    ],
)
def test_two_flash_images(line: str, own: Path) -> None:
    found = asked(line.format(code=CODE, own=own))
    assert (lacking(found), of_firmware(found)) == ([], [])
    assert started(found) == (str(CODE), str(own), "", False)
    check(found)


@pytest.mark.parametrize("how", ["snapshot=on", "readonly=on"])
def test_variables_that_are_not_to_be_written_go_with_the_vm(how: str, own: Path) -> None:
    found = asked(f"-pflash {CODE} -drive if=pflash,unit=1,{how},file={own}")
    assert started(found) == (str(CODE), "", str(own), False)
    assert started(asked(f"-snapshot -pflash {CODE} -pflash {own}")) == (str(CODE), "", str(own), False)


def test_bios_names_uefi_too() -> None:
    whole = "/usr/share/qemu/OVMF.fd"
    assert started(asked(f"-bios {CODE}")) == (str(CODE), "", "", False)
    assert started(asked(f"-bios {whole}")) == (whole, "", "", False)
    assert started(asked("-bios OVMF.fd")) == (whole, "", "", False)  # in QEMU's data directory
    [told] = of_firmware(asked(f"-pflash {whole}"))
    assert told == f"{whole} is not written: what UEFI keeps is in a file of the VM's own"


def test_uefi_starts_a_kernel(own: Path) -> None:
    spec = to_spec(parse(f"-kernel k -append quiet -pflash {CODE} -pflash {own}".split()))
    assert (spec.kernel, spec.append, spec.firmware, spec.nvram) == ("k", "quiet", str(CODE), str(own))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-drive if=pflash,unit=1,file=v", "v is unit 1, and no unit 0 has the code"),
        ("-pflash c -pflash v -pflash x", "x: there are two"),
        ("-drive if=pflash,unit=0,file=c -drive if=pflash,unit=0,file=d", "c and d are both unit 0"),
        ("-drive if=pflash,format=qcow2,file=c", "qemu-img convert -O raw c c.raw"),
        ("-machine pflash0=c", "-machine pflash0: no -blockdev is named c"),
        ("-global virtio-blk-pci.num-queues=4", "say it at the device itself"),
    ],
)
def test_what_is_no_flash_is_refused(line: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        asked(line)


def test_files_that_are_not_there_are_named_with_the_nearest(tmp_path: Path, own: Path) -> None:
    """QEMU makes no variables, so they are to be there; and they are to be of the code's size."""
    none = tmp_path / "none.fd"
    for line, said in (
        (f"-pflash {CODE} -pflash {none}", f"the file of UEFI variables {none}; nearest: cp {VARS} {none}"),
        (f"-pflash {none} -pflash {own}", f"the firmware {none}; nearest: {CODE}"),
        ("-bios /usr/share/edk2/x64/OVMF.4m.fd", f"the firmware /usr/share/edk2/x64/OVMF.4m.fd; nearest: {CODE}"),
        (f"-pflash {CODE} -pflash {SMALL_VARS}",
            f"variables {SMALL_VARS} (131072 bytes do not go with {CODE}); nearest: a copy of {VARS}"),
        (f"-pflash {own} -pflash {CODE}", f"variables {CODE} (it does not begin with a volume of them)"),
    ):  # fmt: skip
        [text] = lacking(asked(line))
        assert said in text
    done = kvmkit("qemu", "-hda", str(own), "-pflash", str(CODE), "-pflash", str(none))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"cp {VARS} {none}" in done.stderr
    assert not none.exists()


def test_code_that_needs_smm_becomes_the_hosts_own_and_is_told(tmp_path: Path, own: Path) -> None:
    """By what is in it, under any name; by its name where it is not here."""
    renamed = tmp_path / "FIRMWARE.fd"
    shutil.copy(SECBOOT, renamed)
    for code in (
        str(SECBOOT),
        str(renamed),
        str(OVMF / "OVMF_CODE_4M.ms.fd"),
        "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
    ):
        secure = "-machine q35,smm=on -global driver=cfi.pflash01,property=secure,value=on"
        found = asked(f"{secure} -drive if=pflash,readonly=on,file={code} -drive if=pflash,file={own}")
        assert lacking(found) == []
        assert of_firmware(found) == [
            f"{code} needs system management mode, which this machine does not have: {CODE} starts instead, "
            "which has Secure Boot without"
        ]
        assert started(found) == ("uefi", str(own), "", True)
        check(found)
    assert started(asked(f"-pflash {SECBOOT}")) == ("uefi", "", "", True)
    [text] = lacking(asked(f"-pflash {SECBOOT} -pflash {SMALL_VARS}"))
    assert "131072 bytes do not go with" in text
    renamed.write_bytes(CODE.read_bytes())
    assert of_firmware(asked(f"-pflash {renamed} -pflash {own}")) == []


def test_what_is_no_image_needs_no_smm(tmp_path: Path) -> None:
    """And does not keep us: nobody writes to the FIFO, and the section names a dictionary of 4 GiB."""
    os.mkfifo(tmp_path / "fifo")
    code = SECBOOT.read_bytes()
    at = code.find(smm.LZMA)
    begin = at - smm.HEADER + int.from_bytes(code[at + 16 : at + 18], "little")
    (tmp_path / "wild").write_bytes(code[: begin + 1] + b"\xff" * 4 + code[begin + 5 :])
    (tmp_path / "cut").write_bytes(code[: begin + 9])
    for name in ("fifo", "wild", "cut", "."):
        assert not smm.needs_smm(str(tmp_path / name))


def test_without_ovmf_what_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    monkeypatch.setattr(uefi, "OVMF", ())
    for code in (SECBOOT, "/usr/share/edk2/x64/OVMF_CODE.4m.fd"):
        [text] = lacking(asked(f"-pflash {code} -pflash {own}"))
        assert f"the firmware {code}" in text
        assert "ovmf" in text.partition("nearest:")[2]


def domain(os_element: str) -> str:
    """A domain around the page's <os>, with the <type> that libvirt wants in it."""
    machine = '<type arch="x86_64" machine="q35">hvm</type>'
    element = os_element.replace("</os>", f"{machine}</os>")
    disk = "<source file='/web.raw'/><target dev='vda' bus='virtio'/>"
    devices = f"<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>{disk}</disk></devices>"
    return f"<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory>{element}{devices}</domain>"


def imported(os_element: str) -> Imported:
    return read_domain(domain(os_element), "web.xml")


PAGES_CODE = "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd"
PAGES_TEMPLATE = "/usr/share/edk2/x64/OVMF_VARS.4m.fd"
LOADER = f'<loader readonly="yes" secure="yes" type="pflash">{PAGES_CODE}</loader>'


def test_os_firmware_efi_loader_secure() -> None:
    found = imported(f'<os firmware="efi"> {LOADER} </os>')
    assert found.unlisted == ()
    assert found.description.firmware == Firmware(code=PAGES_CODE, secure=True)
    assert lacking(found.description) == []
    [told] = differing(found.description)
    assert told.startswith(f"{PAGES_CODE} needs system management mode")
    assert started(found.description) == ("uefi", "", "", True)
    check(found.description)


def test_os_firmware_efi_loader_secure_and_nvram_template(tmp_path: Path) -> None:
    """With the variables that virt-fw-vars wrote; the template is Arch's, and not on other hosts."""
    variables = tmp_path / "web_SECURE_VARS.fd"
    text = f'<os firmware="efi"> {LOADER} <nvram template="{PAGES_TEMPLATE}">{variables}</nvram> </os>'
    found = imported(text)
    assert found.unlisted == ()
    assert found.description.firmware == Firmware(
        code=PAGES_CODE, variables=str(variables), made=True, secure=True, template=PAGES_TEMPLATE
    )
    shutil.copy(KEYS, variables)
    if not os.path.exists(PAGES_TEMPLATE):
        [told] = lacking(found.description)
        assert f"template of UEFI variables {PAGES_TEMPLATE}" in told
        assert told.endswith(f"nearest: {KEYS}")
        assert started(found.description) == ("uefi", str(variables), "", True)
    written, _ = write_domain(found.description)
    assert read_domain(written, "again.xml").description == found.description
    defined(written, tmp_path / "written.xml")
    here = imported(text.replace(PAGES_TEMPLATE, str(VARS))).description
    assert lacking(here) == []
    assert started(here) == ("uefi", str(variables), str(VARS), True)
    check(here)


def test_libvirts_variables_are_made_where_they_can_be(tmp_path: Path) -> None:
    def found(path: str) -> Description:
        return imported(f'<os firmware="efi"><nvram template="{KEYS}">{path}</nvram></os>').description

    new = str(tmp_path / "new.fd")
    assert (lacking(found(new)), started(found(new))) == ([], ("uefi", new, str(KEYS), False))
    for path in ("/var/lib/libvirt/qemu/nvram/nobodys_VARS.fd", str(tmp_path / "no" / "new.fd")):
        [told] = lacking(found(path))
        assert told == f"the file of UEFI variables {path}; nearest: the VM's own, made of {KEYS}"
        assert started(found(path)) == ("uefi", "", str(KEYS), False)


@pytest.mark.parametrize(
    ("inside", "secure_boot", "left"),
    [
        ("", False, 0),
        ("<loader secure='yes'/>", True, 0),
        ("<firmware><feature enabled='yes' name='secure-boot'/></firmware>", True, 0),
        ("<firmware><feature enabled='yes' name='enrolled-keys'/></firmware>", True, 0),
        ("<firmware><feature enabled='no' name='secure-boot'/></firmware>", False, 0),
        ("<firmware><feature enabled='yes' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>",
            False, 0),
        ("<loader secure='yes' type='pflash' format='qcow2'>/c.qcow2</loader><nvram format='qcow2'>/v</nvram>",
            True, 2),
        ("<loader stateless='yes'/>", False, 1),
    ],
)  # fmt: skip
def test_libvirt_chooses_the_image_and_so_do_we(inside: str, secure_boot: bool, left: int) -> None:
    found = imported(f'<os firmware="efi">{inside}</os>')
    assert started(found.description) == ("uefi", "", "", secure_boot)
    assert len(found.unlisted) == left
    written, _ = write_domain(found.description)
    assert started(read_domain(written, "again.xml").description) == ("uefi", "", "", secure_boot)


def test_variables_in_a_source_element(own: Path) -> None:
    loader = f"<loader type='pflash' readonly='yes'>{CODE}</loader>"
    found = imported(f"<os>{loader}<nvram type='file'><source file='{own}'/></nvram></os>")
    assert started(found.description) == (str(CODE), str(own), "", False)
    assert found.unlisted == ()


def specs(own: Path) -> list[VmSpec]:
    vm = VmSpec(name="web", transport="pci", console=True, networks=(), firmware="uefi")
    ours = {"firmware": "uefi", "nvram": str(own)}
    return [
        msgspec.structs.replace(vm, **fields)
        for fields in (
            ours,
            ours | {"secure_boot": True},
            ours | {"secure_boot": True, "nvram_template": str(KEYS)},
            {"secure_boot": True},
            {"nvram_template": str(KEYS)},
            {"firmware": str(CODE), "nvram": str(own)},
            {"firmware": str(CODE), "nvram_template": str(own)},
            {"firmware": str(CODE)},
            {"firmware": "/usr/share/qemu/OVMF.fd", "kernel": "/k", "append": "quiet"},
        )
    ]


def defined(xml: str, path: Path) -> None:
    """libvirt itself takes it: its schema, and what it checks beside."""
    if shutil.which("virt-xml-validate") is None or shutil.which("virsh") is None:
        pytest.skip("virt-xml-validate and virsh are not installed (libvirt-clients)")
    path.write_text(xml)
    subprocess.run(["virt-xml-validate", str(path), "domain"], check=True, capture_output=True)
    path.write_text(xml.replace('type="kvm"', 'type="test"'))
    done = subprocess.run(["virsh", "-c", "test:///default", "define", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + xml


def test_a_vm_there_and_back_by_libvirts_xml(own: Path, tmp_path: Path) -> None:
    for spec in specs(own):
        description, left = to_description(spec)
        xml, more = write_domain(description)
        again = read_domain(xml, "again.xml")
        whole = spec.firmware != "uefi" and not (spec.nvram or spec.nvram_template)
        assert left == ([NOT_KEPT] if whole else [])
        template = "" if spec.firmware == "uefi" else spec.nvram_template  # with the image, it is libvirt's to choose
        assert [spec.nvram_template in text for text in more] == [True] * (template != spec.nvram_template)
        assert again.unlisted == ()
        assert started(again.description) == (spec.firmware, spec.nvram, template, spec.secure_boot)
        defined(xml, tmp_path / "web.xml")


def test_a_vm_there_and_back_by_qemus_words(own: Path) -> None:
    """The host's OVMF has a path there, and a template that goes with it where no file keeps the variables."""
    for spec in specs(own):
        firmware, nvram, template, _ = started(parse(write_qemu(to_description(spec)[0])))
        assert firmware == (str(CODE) if spec.firmware == "uefi" else spec.firmware)
        assert nvram == spec.nvram
        given = spec.nvram_template or (str(KEYS) if spec.secure_boot else str(VARS))
        assert template == ("" if nvram or (spec.firmware != "uefi" and not spec.nvram_template) else given)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed: qemu-system-x86")
def test_qemu_takes_the_flash_images_we_write(own: Path) -> None:
    """With the code at the end of 4 GiB and the variables below it."""
    for spec in specs(own)[1:6:2]:
        words = write_qemu(to_description(msgspec.structs.replace(spec, accel="tcg", memory="64M", serial="null"))[0])
        line = ["qemu-system-x86_64", *words, "-S", "-monitor", "stdio"]
        done = subprocess.run(line, input="info mtree\nquit\n", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "ffc84000-00000000ffffffff (prio 0, romd): system.flash0" in done.stdout
        assert "ffc00000-00000000ffc83fff (prio 0, romd): system.flash1" in done.stdout


def test_what_qemu_does_otherwise_with_variables_is_told(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    for nvram, said in ((own, ""), (tmp_path / "new.fd", f"cp {KEYS}"), ("", "goes with the VM")):
        line = f'nvram = "{nvram}"' if nvram else ""
        file.write_text(f'firmware = "uefi"\nsecure_boot = true\n{line}\n[[disks]]\npath = "a.raw"\n')
        done = kvmkit("export", str(file), "--qemu")
        assert done.returncode == 0
        assert (said in done.stderr) if said else (done.stderr == "")
        assert f"unit=0,readonly=on,file={CODE}" in done.stdout
        toml = kvmkit("export", str(file), "--toml").stdout
        assert ("nvram =" in toml) == bool(nvram)
        assert "secure_boot = true" in toml
    assert kept_otherwise(asked(f"-pflash {CODE} -pflash {own}").firmware) == ""


def test_a_vm_that_was_started_is_exported_with_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in its directory; another VM, made of its TOML, gets others."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    disk = tmp_path / "a.raw"
    disk.write_bytes(bytes(1 << 20))
    made = kvmkit("create", "--name", "web", "--firmware", "uefi", "--disk", str(disk))
    assert made.returncode == 0, made.stderr
    [home] = [path.parent for path in tmp_path.rglob("vm.json")]
    assert "nvram.fd" not in kvmkit("export", "web", "--qemu").stdout
    shutil.copy(VARS, home / "nvram.fd")
    line = kvmkit("export", "web", "--qemu").stdout
    assert started(parse(shlex.split(line)[1:])) == (str(CODE), str(home / "nvram.fd"), "", False)
    assert f">{home}/nvram.fd</nvram>" in kvmkit("export", "web", "--libvirt").stdout
    assert "nvram" not in kvmkit("export", "web", "--toml").stdout


def kvmkit(*line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}
    command = [sys.executable, "-m", "kvmkit", *line]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment
    )  # fmt: skip


def test_ovmf_by_qemus_words_finds_the_disk_and_keeps_what_it_writes(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is on the disk: its firmware says so on the console, and goes on to its shell."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parent.parent))
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    words = ["-machine", "q35,smm=on", "-accel", "tcg", "-m", "128", "-nographic", "-nic", "none", "-hda", str(disk)]
    words += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={SECBOOT}"]
    words += ["-drive", f"if=pflash,format=raw,unit=1,file={own}"]
    line = [sys.executable, "-m", "kvmkit", "qemu", *words]
    guest = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    heard = b""
    try:
        while b"Interactive Shell" not in heard:
            assert guest.stdout is not None
            heard += (piece := os.read(guest.stdout.fileno(), 4096))
            assert piece, heard
    finally:
        guest.terminate()
        told = guest.communicate(timeout=30)[1]
    assert b"BdsDxe: failed to load Boot0001" in heard
    assert b"needs system management mode" in told
    assert own.read_bytes() != VARS.read_bytes()
