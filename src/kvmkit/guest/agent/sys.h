/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * System calls without a C library: the agent is then some 20 KB, needs no libc.a on the host that
 * builds it, and starts without a loader, locale or IRELATIVE relocations. x86-64 only.
 * Every call returns the kernel's value: >= 0, or -errno. */
#ifndef SYS_H
#define SYS_H

#include <asm/ioctls.h>
#include <asm/stat.h>
#include <asm/termbits.h>
#include <asm/termios.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/reboot.h>
#include <linux/signal.h>
#include <linux/signalfd.h>
#include <linux/sockios.h>
#include <linux/stat.h>
#include <linux/types.h>
#include <linux/wait.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;

#define INLINE static inline __attribute__((always_inline))
#define NULL ((void *)0)

INLINE long call6(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(n)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return n;
}
#define SYS(name, a, b, c, d, e) call6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

INLINE long sys_read(int fd, void *to, u64 n) { return SYS(read, fd, to, n, 0, 0); }
INLINE long sys_write(int fd, const void *from, u64 n) { return SYS(write, fd, from, n, 0, 0); }
INLINE int sys_open(const char *path, int flags) { return SYS(openat, AT_FDCWD, path, flags, 0, 0); }
INLINE int sys_close(int fd) { return SYS(close, fd, 0, 0, 0, 0); }
INLINE int sys_dup2(int from, int to) { return SYS(dup2, from, to, 0, 0, 0); }
INLINE int sys_pipe(int fds[2], int flags) { return SYS(pipe2, fds, flags, 0, 0, 0); }
INLINE int sys_ioctl(int fd, u64 request, const void *argument) { return SYS(ioctl, fd, request, argument, 0, 0); }
INLINE int sys_nonblock(int fd) { return SYS(fcntl, fd, F_SETFL, O_RDWR | O_NONBLOCK, 0, 0); }
INLINE int sys_poll(struct pollfd *fds, u32 n, int ms) { return SYS(poll, fds, n, ms, 0, 0); }
INLINE int sys_mkdir(const char *path, int mode) { return SYS(mkdir, path, mode, 0, 0, 0); }
INLINE int sys_chdir(const char *path) { return SYS(chdir, path, 0, 0, 0, 0); }
INLINE int sys_symlink(const char *to, const char *path) { return SYS(symlink, to, path, 0, 0, 0); }
INLINE int sys_mount(const char *type, const char *where, u64 flags, const char *options)
{
    return SYS(mount, type, where, type, flags, options);
}
INLINE int sys_mount_from(const char *from, const char *type, const char *where, u64 flags, const char *options)
{
    return SYS(mount, from, where, type, flags, options);
}
INLINE int sys_detach(const char *path) { return SYS(umount2, path, 2 /* MNT_DETACH */, 0, 0, 0); }
INLINE int sys_rmdir(const char *path) { return SYS(rmdir, path, 0, 0, 0, 0); }
INLINE int sys_chroot(const char *path) { return SYS(chroot, path, 0, 0, 0, 0); }
INLINE long sys_entries(int fd, void *to, u64 n) { return SYS(getdents64, fd, to, n, 0, 0); }
INLINE int sys_getpid(void) { return SYS(getpid, 0, 0, 0, 0, 0); }
INLINE int sys_setsid(void) { return SYS(setsid, 0, 0, 0, 0, 0); }
INLINE int sys_kill(int pid, int number) { return SYS(kill, pid, number, 0, 0, 0); }
INLINE int sys_wait(int pid, int *status, int flags) { return SYS(wait4, pid, status, flags, 0, 0); }
INLINE int sys_execve(const char *path, char **argv, char **env) { return SYS(execve, path, argv, env, 0, 0); }
INLINE int sys_setmask(const u64 *mask) { return SYS(rt_sigprocmask, SIG_SETMASK, mask, NULL, 8, 0); }
INLINE int sys_signalfd(const u64 *mask) { return SYS(signalfd4, -1, mask, 8, SFD_CLOEXEC | SFD_NONBLOCK, 0); }
INLINE int sys_sethostname(const char *name, u64 n) { return SYS(sethostname, name, n, 0, 0, 0); }
INLINE int sys_socket(int family, int type) { return SYS(socket, family, type, 0, 0, 0); }
INLINE int sys_bind(int fd, const void *address, u32 n) { return SYS(bind, fd, address, n, 0, 0); }
INLINE int sys_connect(int fd, const void *address, u32 n) { return SYS(connect, fd, address, n, 0, 0); }
INLINE int sys_create(const char *path, int flags, int mode)
{
    return SYS(openat, AT_FDCWD, path, flags, mode, 0);
}
INLINE int sys_fstat(int fd, struct stat *into) { return SYS(fstat, fd, into, 0, 0, 0); }
INLINE int sys_fchown(int fd, u32 uid, u32 gid) { return SYS(fchown, fd, uid, gid, 0, 0); }
INLINE int sys_setgroups(u32 n, const u32 *groups) { return SYS(setgroups, n, groups, 0, 0, 0); }
INLINE int sys_setgid(u32 gid) { return SYS(setgid, gid, 0, 0, 0, 0); }
INLINE int sys_setuid(u32 uid) { return SYS(setuid, uid, 0, 0, 0, 0); }
INLINE int sys_settime(int clock, const void *time) { return SYS(clock_settime, clock, time, 0, 0, 0); }
INLINE int sys_finit_module(int fd) { return SYS(finit_module, fd, "", 0, 0, 0); }
INLINE int sys_fork(void) { return SYS(fork, 0, 0, 0, 0, 0); }
INLINE int sys_nice(int value) { return SYS(setpriority, 0, 0, value, 0, 0); }
INLINE int sys_map(u8 **at, u64 n)
{
    long got = call6(__NR_mmap, 0, n, 3 /* PROT_READ | PROT_WRITE */, 0x22 /* MAP_PRIVATE | MAP_ANONYMOUS */, -1, 0);
    if (got < 0 && got > -4096)
        return got;
    *at = (u8 *)got;
    return 0;
}
INLINE void sys_unmap(void *at, u64 n) { SYS(munmap, at, n, 0, 0, 0); }
INLINE void sys_sync(void) { SYS(sync, 0, 0, 0, 0, 0); }
INLINE int sys_reboot(u32 command) { return SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, 0, 0); }
/* Shares memory and stack with the parent, which sleeps until the child has exec'ed or exited: the caller
 * must not return between this call and either. */
INLINE int sys_vfork(void) { return SYS(vfork, 0, 0, 0, 0, 0); }
__attribute__((noreturn)) INLINE void sys_exit(int status)
{
    for (;;)
        SYS(exit_group, status, 0, 0, 0, 0);
}

/* gcc calls these by name whatever the flags; elsewhere in the agent they are used as usual. */
void *memcpy(void *to, const void *from, __SIZE_TYPE__ n);
void *memmove(void *to, const void *from, __SIZE_TYPE__ n);
void *memset(void *to, int value, __SIZE_TYPE__ n);
__SIZE_TYPE__ strlen(const char *s);
int starts_with(const char *s, const char *prefix);

#endif
