/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the first process of a system does. Only what the channel needs comes before HELLO; the rest is
 * done while the host reads it. */
#include "agent.h"

static char channel_path[64] = "/dev/ttyS1";
int wants_vsock;
static int has_volumes;

static void read_command_line(void)
{
    static char line[4096];
    static const char key[] = "kvmkit.channel=";
    int fd = sys_open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, line, sizeof line - 1);
    sys_close(fd);
    for (char *word = line; n > 0 && *word; word++) {
        if ((word == line || word[-1] == ' ') && starts_with(word, "kvmkit.vsock"))
            wants_vsock = 1;
        if ((word == line || word[-1] == ' ') && starts_with(word, "kvmkit.volume="))
            has_volumes = 1;
        if ((word != line && word[-1] != ' ') || !starts_with(word, key))
            continue;
        u32 at = 5; /* after "/dev/" */
        for (const char *c = word + sizeof key - 1; *c > ' ' && at < sizeof channel_path - 1; c++)
            channel_path[at++] = *c;
        channel_path[at] = 0;
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
