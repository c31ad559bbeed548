"""Which engine to run on: what /dev/kvm is worth on this host, measured once for each boot of it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec

from kvmkit.accel import ENGINES
from kvmkit.errors import BadInput, HostError, KvmkitError

# KVM may be there and have no VMX or SVM to stand on (a VM whose own host gives it none): then it interprets every
# ring-0 instruction, at 1 to 5 million a second, and a kernel does not boot in any useful time. A processor runs
# thousands of millions; KVM on a software CPU that has SVM, the slowest that is of use, was measured at 63 to 159.
FAST_ENOUGH = 30.0

CACHE_FORMAT = 1


class Probe(msgspec.Struct, frozen=True):
    """What was found. `fit`: `auto` takes kvm. `reason` is one line; `advice`, when not empty, says what to do."""

    device: bool = False
    """/dev/kvm is there."""
    permission: bool = False
    """This user may open it."""
    api_version: int | None = None
    capabilities: dict[str, int] = {}
    """KVM_CAP_ values by name, without that prefix."""
    ring0_rate: float | None = None
    """Millions of simple ring-0 instructions a second; None: not measured, or it failed."""
    exit_cost: float | None = None
    """Microseconds for one port write that leaves to user space."""
    usable: bool = False
    """A VM can be made, however slow."""
    fit: bool = False
    reason: str = ""
    advice: str = ""

    @property
    def native(self) -> bool:
        """Ring-0 code runs on what KVM stands on, rather than in KVM's instruction emulator."""
        return self.ring0_rate is not None and self.ring0_rate >= FAST_ENOUGH

    @property
    def engine(self) -> str:
        """What `auto` takes."""
        return "kvm" if self.fit else "tcg"


def choose(name: str, warn: Callable[[str], None] | None = None) -> ModuleType:
    """The engine module for `auto`, `kvm` or `tcg`; it offers `create` (`kvmkit.accel.Engine`).

    `kvm` on a host where it is unfit works, and `warn` gets one line about it. Raises BadInput for another name and
    HostError, with the command that mends it, when `kvm` is asked for and can't be used.
    """
    if name not in ("auto", *ENGINES):
        raise BadInput(f"--accel {name}: not an engine; there are auto, {', '.join(ENGINES)}")
    if name != "tcg":
        found = probe()
        if name == "kvm" and not found.usable:
            raise HostError(found.reason)
        if name == "kvm" and not found.fit and warn is not None:
            warn(f"--accel kvm: {found.reason}; {found.advice}")
        if name == "auto":
            name = found.engine
    return importlib.import_module(f"kvmkit.accel.{name}")


def probe(*, fresh: bool = False) -> Probe:
    """Look at this host's KVM. The speeds come from the cache when it is of this boot, unless `fresh`."""
    from kvmkit.accel.kvm.system import DEVICE, REQUIRED, KvmSystem

    device = os.path.exists(DEVICE)
    try:
        system = KvmSystem()
    except HostError as error:
        permission = device and os.access(DEVICE, os.R_OK | os.W_OK)
        return Probe(device, permission, reason=str(error), advice="`--accel tcg` works without")
    try:
        version = system.api_version()
        capabilities = system.capabilities()
    finally:
        system.close()
    missing = [f"KVM_CAP_{name}" for name in REQUIRED if not capabilities[name]]
    if missing:
        reason = f"this host's KVM lacks {', '.join(missing)}"
        return Probe(True, True, version, capabilities, reason=reason, advice="a newer kernel has it")
    try:
        ring0, cost = _speed(fresh)
    except KvmkitError as error:
        reason = f"{DEVICE} is there, but a guest of two instructions failed: {error}"
        return Probe(True, True, version, capabilities, usable=True, reason=reason, advice=_SLOW_ADVICE)
    fit = ring0 >= FAST_ENOUGH
    if fit:
        reason = f"{DEVICE} runs ring 0 at {ring0:,.0f} million instructions/s, an exit costs {cost:.1f} us"
        advice = ""
    else:
        why = "it interprets them: no VMX or SVM below it"
        reason = f"{DEVICE} runs ring 0 at {ring0:,.1f} million instructions/s only ({why})"
        advice = _SLOW_ADVICE
    return Probe(True, True, version, capabilities, ring0, cost, True, fit, reason, advice)


_SLOW_ADVICE = "use `--accel tcg`, or turn on nested virtualization on the host above"


def _speed(fresh: bool) -> tuple[float, float]:
    """(ring-0 rate, exit cost), from the cache or measured."""
    key = _host_key()
    path = _cache_file()
    if path is not None and not fresh:
        try:
            cached = msgspec.json.decode(path.read_bytes())
            if cached["key"] == key:
                return float(cached["ring0"]), float(cached["exit_cost"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or not ours to understand: measure
    from kvmkit.accel.kvm.measure import measure

    speed = measure()
    if path is not None:
        _write(path, msgspec.json.encode({"key": key, "ring0": speed.ring0, "exit_cost": speed.exit_cost}))
    return speed.ring0, speed.exit_cost


def _host_key() -> str:
    """What the measurement holds for: this boot, this kernel, KVM's modules as they are loaded now."""
    parts = [f"format {CACHE_FORMAT}", os.uname().release, _read(Path("/proc/sys/kernel/random/boot_id"))]
    for parameter in sorted(Path("/sys/module").glob("kvm*/parameters/*")):
        parts.append(f"{parameter.parts[-3]}.{parameter.name}={_read(parameter)}")
    return "\n".join(parts)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cache_file() -> Path | None:
    from kvmkit.paths import cache_dir

    try:
        return cache_dir() / "accel.json"
    except HostError:
        return None  # nowhere to keep it: measure each time


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
