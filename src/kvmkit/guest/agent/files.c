/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

static u32 number(const char **at)
{
    u32 value = 0;
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (*(*at)++ - '0');
    return value;
}

static const char *field(const char *at, u32 n)
{
    for (; n && *at && *at != '\n'; at++)
        if (*at == ':')
            n--;
    return at;
}

/* By name or number; a number need not be in the file, and is its own group then. */
int find_user(const char *name, struct user *user)
{
    static char text[16384];
    int fd = sys_open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, text, sizeof text - 1);
    sys_close(fd);
    text[n > 0 ? n : 0] = 0;
    u32 length = strlen(name);
    const char *end = name;
    u32 asked = number(&end);
    int numeric = !*end;
    *user = (struct user){.uid = asked, .gid = asked, .home = "/"};
    for (const char *line = text; *line; line++) {
        const char *at = field(line, 2);
        u32 uid = number(&at);
        if (numeric ? uid == asked : starts_with(line, name) && line[length] == ':') {
            user->uid = uid;
            at = field(line, 3);
            user->gid = number(&at);
            at = field(line, 5);
            u32 i = 0;
            while (at[i] > ' ' && at[i] != ':' && i < sizeof user->home - 1) {
                user->home[i] = at[i];
                i++;
            }
            user->home[i] = 0;
            return 0;
        }
        while (*line != '\n' && line[1])
            line++;
    }
    return numeric ? 0 : -ESRCH;
}

void set_time(const u8 *data, u32 n)
{
    u64 now;
    if (n != sizeof now)
        return;
    memcpy(&now, data, sizeof now);
    s64 time[2] = {now / 1000000000, now % 1000000000};
    sys_settime(0 /* CLOCK_REALTIME */, time);
}

void add_entropy(const u8 *data, u32 n)
{
    static struct {
        int bits, bytes;
        u8 data[512];
    } pool; /* struct rand_pool_info */
    if (n > sizeof pool.data)
        n = sizeof pool.data;
    pool.bits = 8 * n;
    pool.bytes = n;
    memcpy(pool.data, data, n);
    int fd = sys_open("/dev/urandom", O_RDWR | O_CLOEXEC);
    sys_ioctl(fd, 0x40085203 /* RNDADDENTROPY */, &pool);
    sys_ioctl(fd, 0x5207 /* RNDRESEEDCRNG */, NULL);
    sys_close(fd);
}
