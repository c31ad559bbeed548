"""`kvmkit doctor`: every check, and the one answer they add up to."""

from __future__ import annotations

from collections.abc import Mapping

from kvmkit.host.checks import access, device, hardware, kernel, memory, nesting, tools
from kvmkit.host.context import Context
from kvmkit.host.report import ACCELERATED, NOTHING, SOFTWARE, VERDICTS, Report, Row, Speed
from kvmkit.host.system import Host


def examine(
    host: Host, speed: Speed | None = None, software: str | None = None, names: Mapping[int, str] | None = None
) -> Report:
    """Look at everything.

    `speed` is what /dev/kvm measured; `software` says why the software CPU can't run here (None: it can); `names` are
    VMs that are known, by their processes. `Report.status` is 0 when a VM can run accelerated, 1 when only on tcg, 2
    when not at all.
    """
    context = Context(host, names)
    rows = [*hardware.rows(context), *kernel.rows(context), *device.rows(context, speed)]
    rows += kernel.virtio_rows(context)
    rows += nesting.rows(context)
    rows += memory.rows(context)
    rows += memory.limit_rows(context)
    rows += kernel.helper_rows(context)
    rows += tools.firmware_rows(context)
    rows += tools.program_rows(context)
    rows += access.rows(context)
    if software is not None:
        rows.append(Row("tcg", "Software CPU", "tcg", "fail", software))
    report = Report("doctor", rows)
    report.status = _status(host, {row.id: row for row in rows}, software)
    report.verdict = VERDICTS[report.status]
    if reason := _reason(report):
        report.verdict += f": {reason}"
    return report


def _status(host: Host, rows: dict[str, Row], software: str | None) -> int:
    needed = ("kvm.device", "kvm.permission") + (("kvm.api",) if host.live else ())
    opens = host.is_x86 and all(id in rows and rows[id].state == "ok" for id in needed)
    if opens and rows["kvm.speed"].state != "warn" and (host.live or rows["cpu.virtualization"].state != "fail"):
        return ACCELERATED
    return SOFTWARE if software is None else NOTHING


def _reason(report: Report) -> str:
    """The first row that stands in the way, in the order in which they depend on each other."""
    if report.status == ACCELERATED:
        return ""
    rows = {row.id: row for row in report.rows}
    for id in ("cpu.virtualization", "kvm.device", "kvm.permission", "kvm.api", "kvm.speed"):
        row = rows.get(id)
        if row is not None and row.state == "fail":
            return f"{row.name}: {row.text}"
    speed = rows.get("kvm.speed")
    if speed is not None and speed.state == "warn":
        return "/dev/kvm is there and slower than tcg"
    return ""
