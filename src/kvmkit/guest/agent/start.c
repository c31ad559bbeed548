/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the first process of a system does. Only what the channel needs comes before HELLO; the rest is
 * done while the host reads it. */
#include "agent.h"

static char channel_path[64] = "/dev/ttyS1";
int wants_vsock;
char init_path[64];
static int has_volumes;

static void copy_word(char *to, u32 at, u32 room, const char *from)
{
    while (*from > ' ' && at < room - 1)
        to[at++] = *from++;
    to[at] = 0;
}

void read_command_line(void)
{
    static char line[4096];
    static const char key[] = "kvmkit.channel=", init[] = "kvmkit.init=";
    int fd = sys_open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, line, sizeof line - 1);
    sys_close(fd);
    for (char *word = line; n > 0 && *word; word++) {
        if ((word == line || word[-1] == ' ') && starts_with(word, "kvmkit.vsock"))
            wants_vsock = 1;
        if ((word == line || word[-1] == ' ') && starts_with(word, "kvmkit.volume="))
            has_volumes = 1;
        if ((word == line || word[-1] == ' ') && starts_with(word, init))
            copy_word(init_path, 0, sizeof init_path, word + sizeof init - 1);
        if ((word != line && word[-1] != ' ') || !starts_with(word, key))
            continue;
        copy_word(channel_path, 5 /* after "/dev/" */, sizeof channel_path, word + sizeof key - 1);
    }
}

const char *start_early(void)
{
    sys_mount("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
    sys_mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    read_command_line();
    /* 0, 1 and 2 must be taken, or a pipe would get them and a command's dup2 would close it. */
    int fd;
    do
        fd = sys_open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd >= 0)
        sys_close(fd);
    return channel_path;
}

/* A system with a service manager: the root disk is mounted for it, and a copy of this program put where a service
 * of its finds it. */
void become_init(void)
{
    static char *argv[] = {init_path, NULL};
    static char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", NULL};
    static u8 piece[16384];
    if (!init_path[0] || !root_wanted())
        return;
    int own = sys_open("/init", O_RDONLY | O_CLOEXEC);
    sys_mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    root_start();
    sys_mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
    sys_mkdir("/run/kvmkit", 0755);
    int copy = sys_create("/run/kvmkit/agent", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    for (long n; copy >= 0 && (n = sys_read(own, piece, sizeof piece)) > 0;)
        sys_write(copy, piece, n);
    sys_close(copy);
    sys_close(own);
    sys_execve(init_path, argv, env);
    finish(LINUX_REBOOT_CMD_POWER_OFF); /* a root disk whose init can't be run */
}

static void loopback_up(void)
{
    /* struct ifreq; <linux/if.h> can't be had without a C library's headers. */
    struct {
        char name[16];
        u16 flags;
        u8 rest[22];
    } request = {.name = "lo", .flags = 0x41 /* IFF_UP | IFF_RUNNING */};
    int fd = sys_socket(2 /* AF_INET */, 2 /* SOCK_DGRAM */ | O_CLOEXEC);
    if (fd < 0)
        return;
    sys_ioctl(fd, SIOCSIFFLAGS, &request);
    sys_close(fd);
}

static void set_hostname(void)
{
    char name[64];
    int fd = sys_open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, name, sizeof name);
    sys_close(fd);
    while (n > 0 && name[n - 1] <= ' ')
        n--;
    if (n > 0)
        sys_sethostname(name, n);
}

void start_late(void)
{
    const u64 safe = MS_NOSUID | MS_NODEV;
    int with_root = root_wanted();
    sys_mount("sysfs", "/sys", safe | MS_NOEXEC, NULL);
    if (with_root)
        root_start();
    sys_mkdir("/dev/pts", 0755);
    sys_mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    sys_mkdir("/dev/shm", 01777);
    sys_mount("tmpfs", "/dev/shm", safe, "mode=1777");
    sys_mount("tmpfs", "/run", safe, "mode=755");
    if (!with_root) /* on a disk, what is written to /tmp need not take memory */
        sys_mount("tmpfs", "/tmp", safe, "mode=1777");
    sys_symlink("/proc/self/fd", "/dev/fd");
    sys_symlink("/proc/self/fd/0", "/dev/stdin");
    sys_symlink("/proc/self/fd/1", "/dev/stdout");
    sys_symlink("/proc/self/fd/2", "/dev/stderr");
    set_hostname();
    loopback_up();
}

/* Directories of the host's. A script, as only guests that have any pay for it. */
void mount_volumes(void)
{
    static char *argv[] = {"sh", "/usr/lib/kvmkit/volumes", NULL};
    static char *env[] = {"PATH=/usr/bin:/bin", NULL};
    static const u64 none;
    if (!has_volumes)
        return;
    int shell = sys_vfork();
    if (shell == 0) {
        sys_setmask(&none);
        sys_execve("/bin/sh", argv, env);
        sys_exit(127);
    }
    int status;
    while (shell > 0 && sys_wait(shell, &status, 0) != shell)
        ;
}

void finish(u32 reboot_command)
{
    root_finish();
    sys_sync();
    sys_reboot(reboot_command);
    sys_exit(0);
}

/* kvmkit.channel=console: no host to talk to, so give whoever reads the console a shell. */
void start_console(void)
{
    static char *argv[] = {"-sh", NULL};
    static char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
                          "TERM=vt100", NULL};
    static const u64 none;
    int shell = sys_vfork();
    if (shell == 0) {
        sys_setmask(&none);
        sys_setsid();
        /* /dev/console itself is never a controlling terminal, without which there is no Ctrl-C. */
        int fd = sys_open("/dev/ttyS0", O_RDWR);
        if (fd >= 0) {
            sys_ioctl(fd, TIOCSCTTY, 0);
            for (int i = 0; i < 3; i++)
                sys_dup2(fd, i);
            if (fd > 2)
                sys_close(fd);
        }
        sys_chdir("/root");
        sys_execve("/bin/sh", argv, env);
        sys_exit(127);
    }
    int status;
    while (shell > 0 && sys_wait(-1, &status, 0) != shell)
        ;
    finish(LINUX_REBOOT_CMD_POWER_OFF);
}
