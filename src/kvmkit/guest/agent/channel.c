/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

static int fd = -1;

static u8 in[HEADER + 65535];
static u32 in_length;

/* Frames are gathered here and written at once, before each wait. */
static u8 out[4 * (HEADER + DATA_MAX)];
static u32 out_length;

int channel_fd(void) { return fd; }

int channel_open(const char *path)
{
    fd = sys_open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    struct termios raw;
    if (sys_ioctl(fd, TCGETS, &raw) == 0) {
        raw.c_iflag = 0;
        raw.c_oflag = 0;
        raw.c_lflag = 0;
        raw.c_cflag = B115200 | CS8 | CREAD | CLOCAL;
        raw.c_cc[VMIN] = 1;
        raw.c_cc[VTIME] = 0;
        sys_ioctl(fd, TCSETS, &raw);
    }
    return fd;
}

void channel_flush(void)
{
    u32 done = 0;
    while (done < out_length) {
        long n = sys_write(fd, out + done, out_length - done);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            break; /* the host is gone; commands stall on their windows until it is back */
        done += n;
    }
    out_length = 0;
}

u8 *channel_space(void)
{
    if (out_length + HEADER + DATA_MAX > sizeof out)
        channel_flush();
    return out + out_length + HEADER;
}

void channel_send(u8 type, u8 id, u32 n)
{
    u8 *header = out + out_length;
    header[0] = type;
    header[1] = id;
    header[2] = n;
    header[3] = n >> 8;
    out_length += HEADER + n;
}

/* Returns 0 at the channel's end. The host is trusted; bytes that can't start a frame are line noise. */
int channel_receive(void (*handle)(u8 type, u8 id, const u8 *data, u32 n))
{
    long n = sys_read(fd, in + in_length, sizeof in - in_length);
    if (n == -EINTR || n == -EAGAIN)
        return 1;
    if (n <= 0)
        return 0;
    in_length += n;
    u32 at = 0;
    while (in_length - at >= HEADER) {
        if (in[at] < HELLO || in[at] > ERROR) {
            at++;
            continue;
        }
        u32 size = in[at + 2] | in[at + 3] << 8;
        if (in_length - at < HEADER + size)
            break;
        handle(in[at], in[at + 1], in + at + HEADER, size);
        at += HEADER + size;
    }
    in_length -= at;
    memmove(in, in + at, in_length);
    return 1;
}
