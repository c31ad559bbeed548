/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

enum { SLOW_DATA = 4096, FAST_DATA = 32768 };

static u8 slow_in[HEADER + PAYLOAD_MAX], slow_out[4 * (HEADER + SLOW_DATA)];
static u8 fast_in[2 * (HEADER + PAYLOAD_MAX)], fast_out[4 * (HEADER + FAST_DATA)];

/* Frames are gathered in `out` and written at once, before each wait. */
struct channel serial = {
    .fd = -1, .data_max = SLOW_DATA, .stdin_window = 8192, .output_window = 65536,
    .in = slow_in, .in_size = sizeof slow_in, .out = slow_out, .out_size = sizeof slow_out,
};
struct channel vsock = {
    .fd = -1, .data_max = FAST_DATA, .stdin_window = 262144, .output_window = 262144,
    .in = fast_in, .in_size = sizeof fast_in, .out = fast_out, .out_size = sizeof fast_out,
};

int channel_open_serial(const char *path)
{
    struct channel *c = &serial;
    c->fd = sys_open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (c->fd < 0)
        return c->fd;
    struct termios raw;
    if (sys_ioctl(c->fd, TCGETS, &raw) == 0) {
        raw.c_iflag = 0;
        raw.c_oflag = 0;
        raw.c_lflag = 0;
        raw.c_cflag = B115200 | CS8 | CREAD | CLOCAL;
        raw.c_cc[VMIN] = 1;
        raw.c_cc[VTIME] = 0;
        sys_ioctl(c->fd, TCSETS, &raw);
    }
    return c->fd;
}

int channel_open_vsock(void)
{
    /* struct sockaddr_vm of <linux/vm_sockets.h>, which includes a C library's headers. */
    struct {
        u16 family, zero;
        u32 port, cid;
        u32 rest;
    } address = {.family = 40 /* AF_VSOCK */, .port = GUEST_PORT, .cid = ~0u};
    int fd = sys_socket(address.family, 1 /* SOCK_STREAM */ | O_CLOEXEC);
    if (fd < 0)
        return fd;
    int error = sys_bind(fd, &address, sizeof address);
    address.port = HOST_PORT;
    address.cid = 2;
    if (error >= 0)
        error = sys_connect(fd, &address, sizeof address);
    if (error < 0) {
        sys_close(fd);
        return error;
    }
    vsock.in_length = vsock.out_length = 0;
    return vsock.fd = fd;
}

void channel_flush(struct channel *c)
{
    u32 done = 0;
    while (done < c->out_length && c->fd >= 0) {
        long n = sys_write(c->fd, c->out + done, c->out_length - done);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            break; /* the host is gone; commands stall on their windows until it is back */
        done += n;
    }
    c->out_length = 0;
}

u8 *channel_space(struct channel *c)
{
    if (c->out_length + HEADER + c->data_max > c->out_size)
        channel_flush(c);
    return c->out + c->out_length + HEADER;
}

void channel_send(struct channel *c, u8 type, u8 id, u32 n)
{
    u8 *header = c->out + c->out_length;
    header[0] = type;
    header[1] = id;
    header[2] = n;
    header[3] = n >> 8;
    c->out_length += HEADER + n;
}

/* Returns 0 at the channel's end. The host is trusted; bytes that can't start a frame are line noise. */
int channel_receive(struct channel *c, void (*handle)(struct channel *c, u8 type, u8 id, const u8 *data, u32 n))
{
    u8 *in = c->in;
    long n = sys_read(c->fd, in + c->in_length, c->in_size - c->in_length);
    if (n == -EINTR || n == -EAGAIN)
        return 1;
    if (n <= 0)
        return 0;
    u32 length = c->in_length + n, at = 0;
    while (length - at >= HEADER) {
        if (in[at] < HELLO || in[at] >= TYPES_END) {
            at++;
            continue;
        }
        u32 size = in[at + 2] | in[at + 3] << 8;
        if (length - at < HEADER + size)
            break;
        handle(c, in[at], in[at + 1], in + at + HEADER, size);
        at += HEADER + size;
    }
    c->in_length = length - at;
    memmove(in, in + at, c->in_length);
    return 1;
}
