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
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
SYS_SETGROUPS, AUDIT_ARCH_X86_64 = 116, 0xC000003E
BPF_LOAD, BPF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06

libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """struct sock_filter of <linux/filter.h>."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(Filter)))


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


def keep_groups() -> None:
    """Have setgroups succeed without effect. QEMU's virtiofsd drops this user's further groups or doesn't start; in a
    user namespace made without a setuid helper, nobody may (user_namespaces(7))."""
    program = Filter * 6
    code = program(
        Filter(BPF_LOAD, 0, 0, 4),  # struct seccomp_data: nr, arch
        Filter(BPF_EQUAL, 0, 3, AUDIT_ARCH_X86_64),
        Filter(BPF_LOAD, 0, 0, 0),
        Filter(BPF_EQUAL, 0, 1, SYS_SETGROUPS),
        Filter(BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO),  # 0: no error
        Filter(BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    call("seccomp", libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(code), code)), 0, 0))


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
        if os.getgroups():
            keep_groups()
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
