"""QEMU's guest agent: with qemu-ga itself, run here on a socket, with recorded answers, and with hostile ones."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.guest.qga import GuestAgentError, GuestAgentTimeout, QemuGuestAgent

QEMU_GA = shutil.which("qemu-ga") or shutil.which("qemu-ga", path="/usr/sbin:/usr/bin")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[QemuGuestAgent]:
    if not QEMU_GA:
        pytest.skip("qemu-ga is not installed (qemu-guest-agent)")
    path = str(tmp_path / "qga")
    refused = "guest-shutdown,guest-set-time,guest-suspend-disk,guest-suspend-ram"
    words = [QEMU_GA, "-m", "unix-listen", "-p", path, "-b", refused, "-t", str(tmp_path), "-f", str(tmp_path / "pid")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while True:
        try:
            agent = QemuGuestAgent(path)
            break
        except GuestAgentError:
            assert time.monotonic() < end
            time.sleep(0.05)
    yield agent
    agent.close()
    process.kill()
    process.wait()


def test_with_qemu_ga_itself(real: QemuGuestAgent) -> None:
    assert real.ping()
    assert real.version()[0].isdigit()
    done = real.execute(["sh", "-c", "cat; echo $WORD >&2; exit 7"], input=b"a\0b", env={"WORD": "said"})
    assert (done.status, done.stdout, done.stderr) == (7, b"a\0b", b"said\n")
    assert real.execute(["sh", "-c", "kill -9 $$"]).status == 128 + 9
    assert len(real.execute(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000
    with pytest.raises(GuestAgentError, match="refuses"):
        real.execute(["/no/such/command"])
    with pytest.raises(GuestAgentTimeout):
        real.execute(["sleep", "2"], timeout=0.1)
    with pytest.raises(GuestAgentError, match="refuses"):
        real.call("guest-no-such-thing")
    assert real.ping()


class Fake:
    """Answers each line with the next of `answers`; the first is what comes to the greeting, behind the delimiter."""

    def __init__(self, answers: list[bytes]) -> None:
        self.ours, theirs = socket.socketpair()
        self.asked: list[dict] = []
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._thread.start()

    def _serve(self, end: socket.socket) -> None:
        with end, end.makefile("rb") as lines:
            for answer in self._answers:
                line = lines.readline()
                if not line:
                    return
                self.asked.append(json.loads(line.lstrip(b"\xff")))
                number = self.asked[-1].get("arguments", {}).get("id", 0)
                try:
                    end.sendall(answer.replace(b"ID", str(number).encode()))
                except OSError:
                    return

    def agent(self, timeout: float = 5.0) -> QemuGuestAgent:
        agent = QemuGuestAgent.__new__(QemuGuestAgent)
        agent._timeout, agent._buffer, agent._socket = timeout, bytearray(), self.ours
        agent._synchronize()
        return agent


GREETING = b'\xff{"return": ID}\n'


def test_what_was_left_over_is_passed_over() -> None:
    left = b'{"return": 5}\n\xff{"return": 77}\n{"retu' + GREETING
    fake = Fake([left, b'{"return": {}}\n', b""])
    with fake.agent() as agent:
        assert agent.ping()
        agent.shutdown("reboot")
    fake._thread.join(10)
    assert [each["execute"] for each in fake.asked] == ["guest-sync-delimited", "guest-ping", "guest-shutdown"]
    assert fake.asked[2]["arguments"] == {"mode": "reboot"}


def test_a_recorded_exec() -> None:
    fake = Fake([
        GREETING, b'{"return": {"pid": 1234}}\n', b'{"return": {"exited": false}}\n',
        b'{"return": {"exitcode": 3, "out-data": "aGVsbG8K", "exited": true}}\n',
    ])  # fmt: skip
    with fake.agent() as agent:
        assert agent.execute(["echo", "hello"]) == (3, b"hello\n", b"")
    assert fake.asked[1]["arguments"] == {"path": "echo", "arg": ["hello"], "capture-output": True}
    assert fake.asked[3]["arguments"] == {"pid": 1234}


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b'{"error": {"class": "GenericError", "desc": "no such thing"}}\n', "refuses: no such thing"),
        (b"nonsense\n", "what is no answer"),
        (b"[1]\n", "what is no answer"),
        (b'{"return": []}\n', "did not say which"),
        (b"[" * 100000 + b"\n", "what is no answer"),
        (b"", "does not answer|has gone"),
    ],
)
def test_answers_that_are_none(answer: bytes, word: str) -> None:
    with Fake([GREETING, answer]).agent(0.5) as agent, pytest.raises(GuestAgentError, match=word):
        agent.execute(["true"])


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    desc = json.dumps({"error": {"desc": "no\x1b[2J\nsuch \ud800thing"}}).encode() + b"\n"
    version = json.dumps({"return": {"version": "7\x1b]0;x\x07.2\udcff"}}).encode() + b"\n"
    with Fake([GREETING, desc, version]).agent() as agent:
        with pytest.raises(GuestAgentError) as error:
            agent.ping()
        assert str(error.value) == "the guest agent refuses: no?[2J?such ?thing"
        assert agent.version() == "7?]0;x?.2?"


def test_output_that_is_no_base64() -> None:
    ended = b'{"return": {"exited": true, "exitcode": 0, "out-data": "%%%"}}\n'
    fake = Fake([GREETING, b'{"return": {"pid": 1}}\n', ended])
    with fake.agent() as agent, pytest.raises(GuestAgentError, match="base64"):
        agent.execute(["true"])


def test_what_can_t_be_asked() -> None:
    with Fake([GREETING]).agent() as agent:
        with pytest.raises(BadInput):
            agent.shutdown("explode")
        with pytest.raises(BadInput):
            agent.execute([])


KEYS = ["return", "error", "pid", "exited", "exitcode", "signal", "out-data", "desc"]
values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), values)
def test_any_bytes_and_any_json_give_one_line(data: bytes, value: object) -> None:
    for answer in (data.replace(b"ID", b"") + b"\n", json.dumps({"return": value}).encode() + b"\n"):
        with Fake([GREETING, answer, answer]).agent(0.3) as agent:
            try:
                said = str(agent.execute(["true"], timeout=0.0).status)
            except GuestAgentError as error:
                said = str(error)
        assert said
        assert "\n" not in said
