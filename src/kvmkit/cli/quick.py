"""The shortest way for `kvmkit exec NAME COMMAND ...`: a program may call it for each of many small commands, and what
`kvmkit.cli.main` imports costs several times what the guest needs. Whatever is not plain is left to that.

No import here but of modules that Python has loaded anyway, or that are compiled.
"""

import os
import sys

PATH_BYTES = 107
SCM_RIGHTS = 1
LONGEST = 65536
OWN_IMAGES = (b"tiny", b"debian", b"debian-systemd")


def attempt(arguments: list[str]) -> int | None:
    """Run `kvmkit exec ARGUMENTS`; returns the exit status. None: nothing was done, and the long way is to be gone."""
    interactive = arguments[:1] == ["-i"]
    if interactive:
        if os.isatty(0):
            return None
        del arguments[0]
    name, *argv = arguments or [""]
    if argv[:1] == ["--"]:
        del argv[0]
    if not argv or not name or name[0] in "-." or "/" in name or argv[0].startswith("-"):
        return None
    try:
        request = _request(argv, interactive)
    except UnicodeError:
        return None
    path = _socket_path(name)
    if len(request) > LONGEST or not path or len(os.fsencode(path)) > PATH_BYTES or not _is_plain(path):
        return None
    import _socket  # the class behind socket.socket, without enum, selectors and the rest

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
        streams = b"".join(fd.to_bytes(4, sys.byteorder) for fd in ([0, 1, 2] if interactive else [1, 2]))
        sent = connection.sendmsg([request], [(_socket.SOL_SOCKET, SCM_RIGHTS, streams)])
    except OSError:
        return None
    try:
        while sent < len(request):
            sent += connection.send(request[sent:])
        answer = b""
        while b"\n" not in answer and (data := connection.recv(LONGEST)):
            answer += data
    except KeyboardInterrupt:
        return 130  # the VM's process sees us go, and ends the command
    except OSError:
        answer = b""
    finally:
        connection.close()
    return _status(answer, argv[0])


def _request(argv: list[str], interactive: bool) -> bytes:
    from _json import encode_basestring_ascii as quoted

    for word in argv:
        word.encode()  # what is no UTF-8 is refused
    words = ",".join(map(quoted, argv))
    stdin = "true" if interactive else "false"
    return f'{{"kvmkit":1,"verb":"exec","argv":[{words}],"stdin":{stdin}}}\n'.encode()


def _is_plain(path: str) -> bool:
    """Whether neither an image's settings nor another agent than ours have to be looked after."""
    try:
        fd = os.open(path[: -len("control.sock")] + "vm.json", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        data = os.read(fd, LONGEST)
    finally:
        os.close(fd)
    if b'"console_ports"' in data:
        return False
    return b'"image"' not in data or any(b'"image": "%s"' % name in data for name in OWN_IMAGES)


def _socket_path(name: str) -> str:
    """As kvmkit.paths and kvmkit.manager.home have it."""
    environ = os.environ
    if home := environ.get("KVMKIT_HOME", ""):
        base = os.path.join(os.getcwd(), home, "data")
    elif (given := environ.get("XDG_DATA_HOME", "")).startswith("/"):
        base = given + "/kvmkit"
    elif home := environ.get("HOME", ""):
        base = home + "/.local/share/kvmkit"
    else:
        return ""
    return f"{base}/machines/{name}/control.sock"


def _status(answer: bytes, command: str) -> int:
    line = answer.partition(b"\n")[0]
    number = line[8:-1]
    if line.startswith(b'{"exit":') and line.endswith(b"}") and number.isdigit():
        return int(number)
    from kvmkit.cli.main import say

    if not line:
        say(f"the VM's process ended before {command} did")
        return 1
    import json

    refused = json.loads(line)
    say(str(refused.get("error", "the VM's process gave an answer that is none")))
    return int(refused.get("status", 1))


def main() -> None:
    """`./kvmkit exec`: the arguments are the checkout and what came after `exec`. Does not return."""
    checkout, *arguments = sys.argv[1:]
    try:
        status = attempt(list(arguments))
        if status is None:
            os.environ["KVMKIT_EXEC_WHOLE"] = "1"
            os.execv(f"{checkout}/kvmkit", [f"{checkout}/kvmkit", "exec", *arguments])
    except KeyboardInterrupt:
        status = 130
    os._exit(status)  # there is nothing to take down
