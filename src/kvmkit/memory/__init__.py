"""Guest RAM: one file descriptor, mapped once, with the PC's hole below 4 GiB."""

from .ram import HIGH_RAM, HOLE, GuestMemory

__all__ = ["HIGH_RAM", "HOLE", "GuestMemory"]
