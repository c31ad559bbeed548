/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The root disk. A disk with the serial number kvmkit-base holds the file system that is only read, one with
 * kvmkit-layer, where there is one, what was changed; else changes are kept in memory. The initramfs holds
 * the few drivers this needs, and a table of them (drivers.c). */
#include "agent.h"

static const char early_table[] = "/drivers";

static int layer = -1;      /* the layer's directory, kept open to put its disk in order at the end */

int root_wanted(void)
{
    int fd = sys_open(early_table, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        sys_close(fd);
    return fd >= 0;
}

static void give_up(const char *what, int error)
{
    char number[8];
    u32 at = sizeof number;
    number[--at] = '\n';
    for (u32 left = -error; left && at; left /= 10)
        number[--at] = '0' + left % 10;
    int fd = sys_open("/dev/console", O_WRONLY | O_CLOEXEC);
    static const char says[] = "kvmkit agent: the root disk can't be used: ";
    sys_write(fd, says, sizeof says - 1);
    sys_write(fd, what, strlen(what));
    sys_write(fd, ": error ", 8);
    sys_write(fd, number + at, sizeof number - at);
    sys_close(fd);
    finish(LINUX_REBOOT_CMD_POWER_OFF);
}

static long read_file(const char *path, char *to, u32 room)
{
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long n, all = 0;
    while (all < room - 1 && (n = sys_read(fd, to + all, room - 1 - all)) > 0)
        all += n;
    sys_close(fd);
    to[all] = 0;
    return all;
}

/* Call `each` for every entry of a directory, with prefix + name + suffix. */
static void for_entries(const char *prefix, const char *suffix, void (*each)(const char *path))
{
    static char entries[8192];
    char path[256];
    int fd = sys_open(prefix, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long n;
    while (fd >= 0 && (n = sys_entries(fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < n;) {
            struct {
                u64 inode, offset;
                u16 length;
                u8 type;
                char name[];
            } *entry = (void *)(entries + at);
            u64 a = strlen(prefix), b = strlen(entry->name), c = strlen(suffix);
            at += entry->length;
            if (entry->name[0] == '.' || a + b + c >= sizeof path)
                continue;
            memcpy(path, prefix, a);
            memcpy(path + a, entry->name, b);
            memcpy(path + a + b, suffix, c + 1);
            each(path);
        }
    if (fd >= 0)
        sys_close(fd);
}

static char base_disk[32], layer_disk[32];

static void look_at_disk(const char *path)
{
    char serial[32];
    const u32 before = sizeof "/sys/block/" - 1;
    if (read_file(path, serial, sizeof serial) <= 0)
        return;
    char *to = starts_with(serial, "kvmkit-base") ? base_disk : starts_with(serial, "kvmkit-layer") ? layer_disk : NULL;
    if (!to)
        return;
    memcpy(to, "/dev/", 5);
    u32 n = 0;
    while (path[before + n] != '/' && n < sizeof base_disk - 6) {
        to[5 + n] = path[before + n];
        n++;
    }
    to[5 + n] = 0;
}

/* A disk that has grown since its file system was made: the file system grows too, mounted as it is. While the guest
 * runs, the disk has `wanted` bytes a moment after the host says so: its driver hears of it by another way. */
static void grow_layer(int at, u64 wanted)
{
    u64 bytes = 0;
    struct {
        u8 before[1024];
        u32 inodes, blocks;
        u8 between[0x148];
        u32 blocks_high;
    } super;
    int disk = sys_open(layer_disk, O_RDONLY | O_CLOEXEC);
    if (disk < 0)
        return;
    for (u32 tries = 0; tries < 50; tries++) {
        if (sys_ioctl(disk, _IOR(0x12, 114, u64) /* BLKGETSIZE64 */, &bytes) < 0 || bytes >= wanted)
            break;
        sys_poll(NULL, 0, 20);
    }
    if (bytes && sys_read(disk, &super, sizeof super) == sizeof super) {
        u64 blocks = bytes / 4096;
        if (blocks > ((u64)super.blocks_high << 32 | super.blocks))
            sys_ioctl(at, _IOW('f', 16, u64) /* EXT4_IOC_RESIZE_FS */, &blocks);
    }
    sys_close(disk);
}

/* Where a service manager is the first process, what that one had open is not ours: the disk is mounted once more. */
void root_grow(const u8 *data, u32 n)
{
    static const char mounted[] = "/run/kvmkit-layer";
    u64 wanted;
    int at = layer;
    if (n != sizeof wanted)
        return;
    memcpy(&wanted, data, sizeof wanted);
    if (!layer_disk[0])
        for_entries("/sys/block/", "/serial", look_at_disk);
    if (!layer_disk[0])
        return;
    if (at < 0) {
        sys_mkdir(mounted, 0700);
        if (sys_mount_from(layer_disk, "ext4", mounted, MS_NOATIME, NULL) >= 0) {
            at = sys_open(mounted, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            sys_detach(mounted);
        }
        sys_rmdir(mounted);
    }
    if (at < 0)
        return;
    grow_layer(at, wanted);
    if (at != layer)
        sys_close(at);
}

static void must(int result, const char *what)
{
    if (result < 0)
        give_up(what, result);
}

void root_start(void)
{
    static const char *const moved[] = {"/dev", "/proc", "/sys"};
    static char target[16] = "/new";
    load_drivers_of_root(early_table);
    for_entries("/sys/block/", "/serial", look_at_disk);
    if (!base_disk[0])
        give_up("no disk has the serial number kvmkit-base", -19 /* ENODEV */);
    sys_mkdir("/base", 0755);
    sys_mkdir("/layer", 0755);
    sys_mkdir("/new", 0755);
    must(sys_mount_from(base_disk, "erofs", "/base", MS_RDONLY, NULL), "mounting the base");
    if (layer_disk[0]) {
        /* The tables' disk was all zeros when the file system was made. */
        must(sys_mount_from(layer_disk, "ext4", "/layer", MS_NOATIME, "noinit_itable,discard,errors=remount-ro"),
             "mounting the layer");
        layer = sys_open("/layer", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        grow_layer(layer, 0);
    } else {
        must(sys_mount("tmpfs", "/layer", 0, "mode=755"), "making a layer in memory");
    }
    sys_mkdir("/layer/upper", 0755);
    sys_mkdir("/layer/work", 0755);
    must(sys_mount("overlay", "/new", 0, "lowerdir=/base,upperdir=/layer/upper,workdir=/layer/work"),
         "joining base and layer");
    for (u32 i = 0; i < sizeof moved / sizeof *moved; i++) {
        memcpy(target + 4, moved[i], strlen(moved[i]) + 1);
        must(sys_mount_from(moved[i], NULL, target, MS_MOVE, NULL), target);
    }
    must(sys_chdir("/new"), "entering it");
    must(sys_mount_from(".", NULL, "/", MS_MOVE, NULL), "moving it to /");
    must(sys_chroot("."), "moving to it");
    sys_chdir("/");
}

void root_finish(void)
{
    if (layer < 0)
        return;
    /* Everybody else stops first: what is frozen below them would have them hang, which is as good. */
    int status;
    sys_kill(-1, SIGTERM);
    for (u32 tries = 0; tries < 20 && sys_wait(-1, &status, WNOHANG) != -ECHILD; tries++)
        sys_poll(NULL, 0, 50);
    sys_kill(-1, SIGKILL);
    sys_sync();
    sys_ioctl(layer, FIFREEZE, 0); /* the journal is written out: the file system is clean */
}
