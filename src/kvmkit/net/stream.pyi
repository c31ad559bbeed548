from socket import socket

from .backend import Backend

class StreamBackend(Backend):
    def __init__(self, socket: socket, name: str = "socket") -> None: ...
    @property
    def waiting(self) -> int: ...
