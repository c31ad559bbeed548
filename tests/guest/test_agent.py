"""The agent itself, compiled as for a guest but run here on a pty: what it does for a command."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import run

from kvmkit.errors import BadInput
from kvmkit.guest.agent_build import compile_agent
from kvmkit.guest.client import AgentClient, AgentGone, CommandTimeout, Escaped, Woken
from kvmkit.terminal import EscapeKey

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler to build the agent with")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("agent")
    compile_agent(directory)
    return directory / "agent"


@pytest.fixture
def client(agent: Path) -> Iterator[AgentClient]:
    host, guest = pty.openpty()
    process = subprocess.Popen([agent, os.ttyname(guest)], stdin=subprocess.DEVNULL)
    client = AgentClient(host)
    client.wait_hello(10)
    os.close(guest)
    yield client
    process.kill()
    process.wait()
    os.close(host)


@pytest.mark.parametrize(
    ("argv", "status", "error"),
    [
        (["true"], 0, b""),
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -9 $$"], 128 + 9, b""),
        (["no-such-command"], 127, b"kvmkit: no-such-command: command not found\n"),
        (["/no/such/file"], 127, b"kvmkit: /no/such/file: No such file or directory\n"),
        (["/etc/passwd"], 126, b"kvmkit: /etc/passwd: Permission denied\n"),
        (["/"], 126, b"kvmkit: /: Permission denied\n"),
    ],
)
def test_a_commands_status_is_what_a_shell_would_give(
    client: AgentClient, argv: list[str], status: int, error: bytes
) -> None:
    ran = run(client, *argv)
    assert (ran.status, ran.out, ran.err) == (status, b"", error)


def test_a_script_without_an_interpreter_is_the_shells(client: AgentClient, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $0 $1; exit 3\n")
    script.chmod(0o755)
    ran = run(client, str(script), "one")
    assert (ran.status, ran.out) == (3, f"{script} one\n".encode())


def test_stdout_and_stderr_are_kept_apart(client: AgentClient) -> None:
    ran = run(client, "sh", "-c", "echo out; echo err >&2")
    assert (ran.out, ran.err) == (b"out\n", b"err\n")


def test_environment_and_directory(client: AgentClient, tmp_path: Path) -> None:
    ran = run(client, "sh", "-c", "pwd; echo $COLOUR $HOME", cwd=str(tmp_path), env={"COLOUR": "a b", "HOME": "/there"})
    assert ran.out == f"{tmp_path}\na b /there\n".encode()
    assert run(client, "sh", "-c", "echo $HOME $PATH").out.startswith(b"/root /usr/local/sbin:")


def test_a_missing_directory_is_said(client: AgentClient) -> None:
    ran = run(client, "true", cwd="/no/such")
    assert (ran.status, ran.err) == (126, b"kvmkit: /no/such: No such file or directory\n")


def test_large_output_arrives_whole(client: AgentClient) -> None:
    ran = run(client, "seq", "1", "200000")
    assert ran.out == b"".join(b"%d\n" % i for i in range(1, 200001))


def test_every_byte_passes_both_ways(client: AgentClient) -> None:
    data = bytes(range(256)) * 1500
    ran = run(client, "cat", data=data)
    assert (ran.status, ran.out) == (0, data)


def test_empty_input_ends_at_once(client: AgentClient) -> None:
    assert run(client, "wc", "-c", data=b"").out.strip() == b"0"


def test_input_that_nobody_reads_does_not_stall(client: AgentClient) -> None:
    assert run(client, "head", "-c", "3", data=b"abc" * 200000).out == b"abc"
    assert run(client, "sh", "-c", "exec <&-; sleep 0.3; exit 5", data=b"abc" * 200000).status == 5


def test_output_after_the_exit_of_what_was_waited_for_is_not_waited_for(client: AgentClient) -> None:
    ran = run(client, "sh", "-c", "(while :; do echo more; sleep 0.01; done) & echo first; exit 4")
    assert ran.status == 4
    assert b"first\n" in ran.out


def test_a_reader_that_goes_ends_the_writer_as_a_pipe_would(client: AgentClient) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    status = client.run(["yes"], stdout=writing, timeout=30)
    os.close(writing)
    assert status == 128 + signal.SIGPIPE


def test_many_commands_at_once(client: AgentClient) -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    commands = [client.start(["sh", "-c", f"sleep 0.2; exit {n}"], stdout=null, stderr=null) for n in range(100)]
    assert [client.wait(command, 30) for command in commands] == list(range(100))
    os.close(null)


def test_more_commands_than_ids_one_after_another(client: AgentClient) -> None:
    assert {client.run(["true"], timeout=30) for _ in range(300)} == {0}


def test_a_flood_does_not_starve_another_command(client: AgentClient) -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    flood = client.start(["yes"], stdout=null)
    assert run(client, "echo", "here").out == b"here\n"
    client.signal(flood, signal.SIGTERM)
    assert client.wait(flood, 30) == 128 + signal.SIGTERM
    os.close(null)


def test_timeout_ends_a_command_that_never_stops_writing(client: AgentClient) -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    with pytest.raises(CommandTimeout, match="did not end within"):
        client.run(["yes"], stdout=null, timeout=0.3)
    os.close(null)
    assert run(client, "echo", "still here").out == b"still here\n"


def test_wake_interrupts_a_wait(client: AgentClient) -> None:
    reading, writing = os.pipe()
    client._wake = reading
    os.write(writing, b"x")
    with pytest.raises(Woken):
        client.run(["sleep", "60"])
    os.close(reading)
    os.close(writing)


def test_an_agent_that_dies_is_noticed(client: AgentClient) -> None:
    with pytest.raises(AgentGone):
        client.run(["sh", "-c", "kill -9 $PPID; sleep 5"], timeout=30)


def test_terminal(client: AgentClient) -> None:
    ran = run(client, "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size; seq 1 3000", tty=True)
    assert ran.status == 0
    assert ran.out == b"24 80\r\n" + b"".join(b"%d\r\n" % i for i in range(1, 3001))


def test_control_c_on_a_terminal_interrupts(client: AgentClient) -> None:
    reading, writing = os.pipe()
    null = os.open("/dev/null", os.O_WRONLY)
    command = client.start(["sleep", "60"], tty=True, stdin=reading, stdout=null)
    while command.pid is None:
        client._turn(None)
    os.write(writing, b"\x03")
    assert client.wait(command, 30) == 128 + signal.SIGINT
    for fd in (reading, writing, null):
        os.close(fd)


def test_a_resize_reaches_the_command(client: AgentClient) -> None:
    keys, keyboard = os.pipe()
    shown, screen = os.pipe()
    command = client.start(["sh", "-c", "stty size; read line; stty size"], tty=True, stdin=keys, stdout=screen)
    output = b""
    while b"24 80" not in output:
        client._turn(None)
        if command.outputs[1].pending:
            client._turn(None)
            output += os.read(shown, 4096)
    client.resize(command, 50, 132)
    os.write(keyboard, b"\n")
    assert client.wait(command, 30) == 0
    assert b"50 132" in os.read(shown, 4096)
    for fd in (keys, keyboard, shown, screen):
        os.close(fd)


def test_the_escape_key_leaves(client: AgentClient) -> None:
    host, user = pty.openpty()
    null = os.open("/dev/null", os.O_WRONLY)
    os.write(host, b"\x1dx")
    with pytest.raises(Escaped):
        client.run(["sleep", "60"], tty=True, stdin=user, stdout=null, escape=EscapeKey(), timeout=30)
    for fd in (host, user, null):
        os.close(fd)


def test_a_commands_descriptors_are_only_its_own(client: AgentClient) -> None:
    ran = run(client, "sh", "-c", "exec ls /proc/self/fd", data=b"")
    assert ran.out.split()[:4] == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads
    assert len(ran.out.split()) == 4


@pytest.mark.parametrize(
    ("argv", "env"),
    [([], {}), ([""], {}), (["a\0b"], {}), (["true"], {"A=B": ""}), (["x" * 70000], {}), (["x"] * 3000, {})],
)
def test_what_no_process_can_be_given_is_refused(client: AgentClient, argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        client.start(argv, env=env)
    assert client.run(["true"], timeout=30) == 0


def test_a_user_by_name_and_by_number(client: AgentClient) -> None:
    if os.getuid():
        pytest.skip("only root can become another user")
    assert run(client, "sh", "-c", "id -u; id -G; echo $HOME", user="nobody").out.split()[0] == b"65534"
    assert run(client, "id", "-u", user="12345").out == b"12345\n"
    ran = run(client, "true", user="nobody-of-that-name")
    assert (ran.status, ran.err) == (126, b"kvmkit: nobody-of-that-name: no such user in the guest\n")


def test_files_both_ways(client: AgentClient, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "source").write_bytes(data)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "copy", "wb") as copy:
        assert client.wait(client.write_file(str(tmp_path / "there"), source.fileno(), 0o640), 30) == 0
        assert client.wait(client.read_file(str(tmp_path / "there"), copy.fileno()), 30) == 0
    assert (tmp_path / "there").read_bytes() == data == (tmp_path / "copy").read_bytes()
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o640 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_file_that_can_t_be(client: AgentClient, tmp_path: Path) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    assert client.wait(client.read_file("/no/such", null), 30) != 0
    assert client.wait(client.read_file(str(tmp_path), null), 30) != 0
    assert client.wait(client.read_file("/dev/zero", null), 30) != 0
    assert client.wait(client.write_file(str(tmp_path), null), 30) != 0
    assert client.wait(client.write_file(str(tmp_path / "empty"), null), 30) == 0
    assert (tmp_path / "empty").read_bytes() == b""
    if os.path.exists("/dev/full"):
        with open(__file__, "rb") as source:
            assert client.wait(client.write_file("/dev/full", source.fileno()), 30) == 28
    with pytest.raises(BadInput):
        client.read_file("a\0b", null)
    assert client.run(["true"], timeout=30) == 0
    os.close(null)
