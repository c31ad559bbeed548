"""For these tests: run a command by an AgentClient and collect what it writes."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from kvmkit.guest.client import AgentClient


@dataclass
class Ran:
    status: int
    out: bytes
    err: bytes


def run(client: AgentClient, *argv: str, data: bytes | None = None, **options: object) -> Ran:
    """`data` is the command's stdin; None is no stdin."""
    collected = {"out": b"", "err": b""}
    ends = {"out": os.pipe(), "err": os.pipe()}
    input_ends = os.pipe() if data is not None else None

    def collect(name: str) -> None:
        with os.fdopen(ends[name][0], "rb") as file:
            collected[name] = file.read()

    def feed() -> None:
        assert input_ends is not None
        try:
            with os.fdopen(input_ends[1], "wb") as file:
                file.write(data or b"")
        except BrokenPipeError:
            pass  # a command need not read all its input

    threads = [threading.Thread(target=collect, args=(name,)) for name in ends]
    if input_ends:
        threads.append(threading.Thread(target=feed))
    for thread in threads:
        thread.start()
    try:
        options.setdefault("timeout", 60)
        stdin = input_ends[0] if input_ends else None
        status = client.run(list(argv), stdin=stdin, stdout=ends["out"][1], stderr=ends["err"][1], **options)  # type: ignore[arg-type]  # options are run()'s own
    finally:
        os.close(ends["out"][1])
        os.close(ends["err"][1])
        if input_ends:
            os.close(input_ends[0])
        for thread in threads:
            thread.join()
    return Ran(status, collected["out"], collected["err"])
