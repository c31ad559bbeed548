"""A PCI function: configuration space, BARs, the PCI Express capability with its reset, MSI-X, and its INTx pin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvmkit.devices.lines import OutputLine

from .config import Bar, Capability, Command, ConfigSpace, Identity, Reg, Status
from .msix import Msix

if TYPE_CHECKING:
    from .bridge import HostBridge

ROOT_COMPLEX_ENDPOINT = 9
EXPRESS_VERSION = 2
FUNCTION_RESET_CAPABLE = 1 << 28
DEVICE_CONTROL = 8
"""Offset in the PCI Express capability."""
START_RESET = 1 << 15
DEVICE_CONTROL_BITS = 0x70FF
"""Error reporting, relaxed ordering, payload and read request sizes: a driver's to set, and nothing comes of them."""


class Function:
    """One function of a device. `moved(bar, address)` is called when a BAR begins to answer at an address, or ends to
    (None); `on_reset()` when the guest resets the function by itself (FLR). Both on a vCPU's thread.

    A function with MSI-X has it added by `add_msix`, with its table and pending bits somewhere in one of the BARs.
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        bars: Sequence[Bar] = (),
        *,
        interrupt_pin: int = 0,
        express: bool = True,
    ) -> None:
        self.name = name
        self.express = 0
        self.bridge: HostBridge | None = None
        self.slot = -1
        self.config = ConfigSpace(identity, interrupt_pin=interrupt_pin)
        self.mapped: dict[int, int] = {}
        """Where each BAR answers now: index to address."""
        self.msix: Msix | None = None
        self.moved: Callable[[Bar, int | None], None] | None = None
        self.on_reset: Callable[[], None] | None = None
        self.interrupting = False
        """The device wants its INTx pin up, if it may."""
        self.line = OutputLine()
        for bar in bars:
            self.config.add_bar(bar)
        self.config.watch(Reg.COMMAND, 2, after_write=self._command_written)
        self.config.watch(Reg.BAR0, 24, after_write=self._bar_written)
        if express:
            self._add_express()

    def _add_express(self) -> None:
        body = bytearray(0x3C - 2)
        body[0:2] = (ROOT_COMPLEX_ENDPOINT << 4 | EXPRESS_VERSION).to_bytes(2, "little")
        body[2:6] = FUNCTION_RESET_CAPABLE.to_bytes(4, "little")
        writable = bytearray(len(body))
        writable[DEVICE_CONTROL - 2 : DEVICE_CONTROL] = DEVICE_CONTROL_BITS.to_bytes(2, "little")
        self.express = self.config.add_capability(Capability.EXPRESS, bytes(body), bytes(writable))

    def add_msix(self, msix: Msix) -> None:
        """Offer its vectors: the table is in one of the BARs, where its owner has put `msix.table`."""
        self.msix = msix
        msix.attach(self.config)
        msix.on_enable = self.update_line

    # What the bus does.

    def read(self, offset: int, size: int) -> int:
        return self.config.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        config = self.config
        config.write(offset, size, value)
        control = self.express + DEVICE_CONTROL + 1
        if self.express and offset <= control < offset + size and value >> 8 * (control - offset) & START_RESET >> 8:
            self.reset()

    def _command_written(self, offset: int, size: int) -> None:
        self.update_line()
        self._bar_written(offset, size)

    def _bar_written(self, offset: int, size: int) -> None:
        if self.bridge is not None:
            self.bridge.remap()

    def reset(self) -> None:
        """Function-level reset: the decoders, BARs, MSI-X and the device behind them are as they were at power-on."""
        config = self.config
        config.put(Reg.COMMAND, 2, 0)
        config.put(Reg.INTERRUPT_LINE, 1, 0xFF)
        config.put(Reg.CACHE_LINE, 1, 0)
        for bar in config.bars:
            config.place_bar(bar, 0)
        if self.express:
            config.put(self.express + DEVICE_CONTROL, 2, 0)
        if self.msix is not None:
            self.msix.reset()
        self.interrupting = False
        if self.on_reset is not None:
            self.on_reset()
        self.update_line()
        self._bar_written(Reg.BAR0, 24)

    # Interrupts.

    @property
    def uses_msix(self) -> bool:
        return self.msix is not None and self.msix.enabled

    def interrupt(self, level: bool) -> None:
        """Want the INTx pin up or down. It goes up only when neither MSI-X nor the command register forbid it."""
        self.interrupting = level
        self.update_line()

    def update_line(self) -> None:
        status = self.config.get(Reg.STATUS, 2) & ~Status.INTERRUPT
        self.config.put(Reg.STATUS, 2, status | (Status.INTERRUPT if self.interrupting else 0))
        masked = self.uses_msix or bool(self.config.command & Command.INTX_DISABLE)
        self.line.update(1 if self.interrupting and not masked else 0)

    def close(self) -> None:
        """Give back what the host holds for it."""
        if self.msix is not None:
            self.msix.close()
