"""Becomes a helper process, in the namespaces it is to have. Run as a script, so that no thread of ours is forked.

Its argument is JSON: `parent` (whose end is ours too), `user` (a user namespace where this user is root), `readonly` (a
directory that can't be written through it, nor what is mounted below) and `argv`.
"""

import ctypes
import json
import os
import signal
import sys

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
PR_SET_PDEATHSIG = 1
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1

libc = ctypes.CDLL(None, use_errno=True)


def call(what: str, result: int) -> None:
    if result < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


def put(path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, data)
        os.close(fd)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")


def become_root() -> None:
    user, group = os.geteuid(), os.getegid()
    call("this host gives an ordinary user no namespaces", libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    put("/proc/self/setgroups", b"deny")
    put("/proc/self/uid_map", b"0 %d 1" % user)
    put("/proc/self/gid_map", b"0 %d 1" % group)


def make_readonly(path: bytes) -> None:
    call("no mounts of its own", libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    call("bind mount", libc.mount(path, path, None, MS_BIND | MS_REC, None))
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    code = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attributes, ctypes.c_size_t(size))
    call("read-only mount", code)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    if wanted["user"]:
        become_root()
    elif wanted["readonly"]:
        call("mount namespace", libc.unshare(CLONE_NEWNS))
    if wanted["readonly"]:
        make_readonly(os.fsencode(wanted["readonly"]))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of rights takes it back
    if os.getppid() != wanted["parent"]:
        sys.exit(1)
    os.execv(wanted["argv"][0], wanted["argv"])


if __name__ == "__main__":
    main()
