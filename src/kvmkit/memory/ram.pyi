from mmap import mmap

from typing_extensions import Buffer

HOLE: int
HIGH_RAM: int

class GuestMemory:
    size: int
    low: int
    span: int
    fd: int
    rom: tuple[int, int, int] | None
    def __init__(
        self,
        size: int,
        shared: bool = False,
        fd: int = -1,
        page: int = 4096,
        populate: bool = False,
        behind: int = 0,
        below: int = HOLE,
    ) -> None: ...
    def regions(self) -> list[tuple[int, int, int]]: ...
    def mapped(self) -> list[tuple[int, int, int]]: ...
    def place(self, fd: int, size: int, private: bool) -> int: ...
    def put_rom(self, data: bytes) -> mmap: ...
    def shared_files(self) -> list[tuple[int, int, int, int]]: ...
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: Buffer) -> None: ...
    def close(self) -> None: ...
