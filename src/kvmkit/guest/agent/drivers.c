/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kernel modules for what is there, by a table that was made with the image: "modalias-prefix path path ...", with
 * what a module needs before it. No shell and no modprobe: on a software CPU these are felt at each boot. */
#include "agent.h"

static const char MMIO[] = "/sys/bus/platform/devices/LNRO0005:00/modalias";
static const char PCI[] = "/sys/bus/pci/devices/0000:00:00.0/modalias";
static const char VSOCK[] = "virtio:d00000013";
enum { MOST = 32 }; /* devices of a bus */

static char table[32768];
static int have_transports;

static void read_table(const char *path)
{
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, table, sizeof table - 1);
    sys_close(fd);
    table[n > 0 ? n : 0] = 0;
}

static void load(const char *path)
{
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    sys_finit_module(fd); /* -EEXIST: an earlier device needed it, too */
    sys_close(fd);
}

static void load_for(const char *alias)
{
    char path[256];
    for (char *line = table; *line; line++) {
        u32 length = 0;
        while (line[length] > ' ')
            length++;
        u32 same = 0;
        while (same < length && line[same] == alias[same])
            same++;
        char *at = line + length;
        while (*at && *at != '\n') {
            u32 n = 0;
            for (at++; *at > ' ' && n < sizeof path - 1; at++)
                path[n++] = *at;
            path[n] = 0;
            if (same == length)
                load(path);
        }
        if (same == length) {
            *line = '#'; /* once is enough */
            return;
        }
        line = at;
        if (!*line)
            return;
    }
}

/* Reads a device's modalias; 0: there is no such device. */
static int alias_of(const char *start, u32 index, int base, const char *end, char *into, u32 size)
{
    static const char digits[] = "0123456789abcdef";
    char path[96];
    u32 n = strlen(start);
    memcpy(path, start, n);
    if (index >= (u32)base || base == 16)
        path[n++] = digits[index / base];
    path[n++] = digits[index % base];
    memcpy(path + n, end, strlen(end) + 1);
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC);
    long got = sys_read(fd, into, size - 1);
    sys_close(fd);
    into[got > 0 ? got : 0] = 0;
    return got > 0;
}

static int is_there(const char *path)
{
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC);
    sys_close(fd);
    return fd >= 0;
}

static void load_transports(void)
{
    char alias[256];
    if (have_transports)
        return;
    have_transports = 1;
    if (is_there(MMIO))
        load_for("acpi:LNRO0005:");
    if (!is_there(PCI))
        return;
    for (u32 i = 0; i < MOST; i++)
        if (alias_of("/sys/bus/pci/devices/0000:00:", i, 16, ".0/modalias", alias, sizeof alias))
            load_for(alias);
}

/* Whether a driver has it. */
static int is_driven(u32 index)
{
    char path[64] = "/sys/bus/virtio/devices/virtio";
    u32 n = strlen(path);
    if (index >= 10)
        path[n++] = '0' + index / 10;
    path[n++] = '0' + index % 10;
    memcpy(path + n, "/driver", sizeof "/driver");
    return is_there(path);
}

static void load_devices(int vsock_alone)
{
    char alias[256];
    for (u32 i = 0; i < MOST && alias_of("/sys/bus/virtio/devices/virtio", i, 10, "/modalias", alias, sizeof alias); i++)
        if (starts_with(alias, VSOCK) == vsock_alone && !is_driven(i))
            load_for(alias);
}

void load_drivers_of_root(const char *path)
{
    read_table(path);
    load_for("root:");
    load_transports();
    load_devices(0);
}

int load_drivers(int with_vsock)
{
    int found = is_there(MMIO) || is_there(PCI);
    if (!found)
        return 0;
    read_table("/usr/lib/kvmkit/drivers");
    /* Before any command runs: what looks for its disk must find it. But vsock is no command's business. */
    int alone = with_vsock && !is_there("/sys/bus/platform/devices/LNRO0005:01/modalias") &&
                !is_there("/sys/bus/pci/devices/0000:00:02.0/modalias");
    if (!alone) {
        load_transports();
        load_devices(0);
    }
    if (!with_vsock)
        return 0;
    int pid = sys_fork();
    if (pid == 0) {
        sys_nice(19);
        if (alone)
            load_transports();
        load_devices(1);
        sys_exit(0);
    }
    return pid > 0 ? pid : 0;
}
