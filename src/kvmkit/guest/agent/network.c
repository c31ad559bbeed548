/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Network cards that the kernel's command line gives an address: kvmkit.ip=CARD:ADDRESS/PREFIX[:GATEWAY[:NAMESERVER]],
 * kvmkit.ip=CARD:up or kvmkit.ip=CARD:dhcp. By ioctl, as a program run for it is felt on a software CPU. */
#include "agent.h"

struct address { /* struct sockaddr_in */
    u16 family;
    u16 port;
    u32 ip; /* in network order */
    u8 zero[8];
};

struct card_request { /* struct ifreq; <linux/if.h> can't be had without a C library's headers */
    char name[16];
    union {
        struct address address;
        u16 flags;
        u8 rest[24];
    };
};

struct route { /* struct rtentry */
    u64 pad1;
    struct address target, gateway, mask;
    u16 flags;
    short pad2;
    u64 pad3;
    void *pad4;
    short metric;
    char *card;
    u64 mtu, window;
    u16 round_trip;
};

enum { INET = 2, DATAGRAM = 2, UP = 1, ROUTE_UP = 1, ROUTE_GATEWAY = 2 };

/* Reads a dotted address; returns what is behind it, or NULL. */
static const char *read_ip(const char *text, u32 *ip)
{
    u8 bytes[4];
    for (int i = 0; i < 4; i++) {
        u32 value = 0, digits = 0;
        for (; *text >= '0' && *text <= '9' && digits < 3; digits++)
            value = 10 * value + (*text++ - '0');
        if (!digits || value > 255 || (i < 3 && *text++ != '.'))
            return NULL;
        bytes[i] = value;
    }
    memcpy(ip, bytes, 4);
    return text;
}

static void bring_up(int fd, struct card_request *card)
{
    if (sys_ioctl(fd, SIOCGIFFLAGS, card) < 0)
        return;
    card->flags |= UP;
    sys_ioctl(fd, SIOCSIFFLAGS, card);
}

static void name_server(const char *text, u32 n)
{
    int fd = sys_create("/etc/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    sys_write(fd, "nameserver ", 11);
    sys_write(fd, text, n);
    sys_write(fd, "\n", 1);
    sys_close(fd);
}

static void ask_dhcp(char *name)
{
    char *argv[] = {"udhcpc", "-i", name, "-b", "-S", "-s", "/usr/lib/kvmkit/dhcp", NULL};
    static char *env[] = {"PATH=/usr/bin:/usr/sbin", NULL};
    static const u64 none;
    if (sys_vfork() == 0) {
        sys_setmask(&none);
        sys_execve("/usr/bin/udhcpc", argv, env);
        sys_execve("/usr/sbin/udhcpc", argv, env);
        sys_exit(127);
    }
}

static void set_up(int fd, const char *text)
{
    struct card_request card = {0};
    struct address address = {.family = INET}, mask = {.family = INET};
    u32 prefix = 0, n = 0;
    while (*text > ' ' && *text != ':' && n < sizeof card.name - 1)
        card.name[n++] = *text++;
    if (*text++ != ':')
        return;
    if (starts_with(text, "up") || starts_with(text, "dhcp")) {
        char name[16];
        memcpy(name, card.name, sizeof name);
        bring_up(fd, &card);
        if (*text == 'd')
            ask_dhcp(name);
        return;
    }
    text = read_ip(text, &address.ip);
    if (!text || *text++ != '/')
        return;
    while (*text >= '0' && *text <= '9' && prefix <= 32)
        prefix = 10 * prefix + (*text++ - '0');
    if (prefix > 32)
        return;
    mask.ip = prefix ? __builtin_bswap32(0xFFFFFFFFu << (32 - prefix)) : 0;
    card.address = address;
    if (sys_ioctl(fd, SIOCSIFADDR, &card) < 0)
        return;
    card.address = mask;
    sys_ioctl(fd, SIOCSIFNETMASK, &card);
    bring_up(fd, &card);
    if (*text != ':')
        return;
    struct route route = {
        .target.family = INET,
        .gateway.family = INET,
        .mask.family = INET,
        .flags = ROUTE_UP | ROUTE_GATEWAY,
        .card = card.name,
    };
    if (*++text != ':') {
        text = read_ip(text, &route.gateway.ip);
        if (!text)
            return;
        sys_ioctl(fd, SIOCADDRT, &route);
    }
    if (*text != ':')
        return;
    u32 ip;
    const char *end = read_ip(++text, &ip);
    if (end)
        name_server(text, end - text);
}

void network_up(void)
{
    static char line[4096];
    static const char key[] = "kvmkit.ip=";
    int fd = sys_open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    long n = sys_read(fd, line, sizeof line - 1);
    sys_close(fd);
    fd = -1;
    for (char *word = line; n > 0 && *word; word++) {
        if ((word != line && word[-1] != ' ') || !starts_with(word, key))
            continue;
        if (fd < 0)
            fd = sys_socket(INET, DATAGRAM | O_CLOEXEC);
        set_up(fd, word + sizeof key - 1);
    }
    if (fd >= 0)
        sys_close(fd);
}
