/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The agent: the guest's first process, which runs commands for the host over one byte stream.
 *
 * The protocol, version 2 (the host's half is kvmkit.guest.protocol; change both together)
 * ---------------------------------------------------------------------------------------
 * A frame is: type u8, command id u8, payload length u16, payload. Numbers are little-endian. On a
 * serial port each byte costs an exit of the virtual machine, hence four bytes and not more.
 * The host picks the ids (1-255) and uses one again only after its EXIT or ERROR. Id 0 is the agent.
 * There may be two channels, the serial port and later a vsock connection; ids are shared, and a command's
 * frames go by the channel that its first one came by.
 *
 *   type          direction  payload
 *   HELLO    0x81 both       "kvmkit", version u8. The agent sends it when it is ready and whenever asked.
 *   EXEC     0x82 to guest   flags u8, rows u16, columns u16, argc u16, envc u16, then NUL-ended strings:
 *                            directory, user (either may be empty), arguments, environment
 *   STDIN    0x83 to guest   data; empty ends it
 *   SIGNAL   0x84 to guest   number u8; goes to the command's process group
 *   RESIZE   0x85 to guest   rows u16, columns u16
 *   CREDIT   0x86 both       stream u8 (0, 1, 2), bytes u32: so many more may be sent
 *   CLOSE    0x87 both       stream u8: its reader is gone, send no more
 *   POWEROFF 0x88 to guest   action u8: 0 power off, 1 reboot
 *   STARTED  0x89 to host    pid u32
 *   STDOUT   0x8a to host    data
 *   STDERR   0x8b to host    data
 *   EXIT     0x8c to host    how u8 (0 exited, 1 killed), status or signal u8; after all output
 *   ERROR    0x8d to host    stage u8, errno u8: the command did not start
 *   READ     0x8e to guest   path, NUL-ended: a regular file, as a command's stdout; then EXIT
 *   WRITE    0x8f to guest   mode u16, path, NUL-ended: made or replaced with what comes as STDIN; then EXIT
 *   TIME     0x90 to guest   nanoseconds u64 since 1970: set the clock
 *   ENTROPY  0x91 to guest   data: mix it into the kernel's random numbers, and have new ones begin
 *   GROW     0x92 to guest   bytes u64: the layer's disk has grown to this; have its file system grow as well
 *
 * The status of an EXIT after READ or WRITE is 0 or an errno.
 *
 * Flow control: each stream of a command starts with a window (below); data beyond it is not sent until
 * CREDIT comes. So neither side ever buffers more than the window, and a full pipe stalls one stream only.
 */
#ifndef AGENT_H
#define AGENT_H

#include "sys.h"

enum { VERSION = 2 };
enum {
    HELLO = 0x81, EXEC, STDIN, SIGNAL, RESIZE, CREDIT, CLOSE, POWEROFF,
    STARTED, STDOUT, STDERR, EXIT, ERROR, READ, WRITE, TIME, ENTROPY, GROW,
    TYPES_END,
};
enum { FLAG_TTY = 1, FLAG_STDIN = 2 };
enum { STAGE_RESOURCES = 1, STAGE_DIRECTORY = 2, STAGE_EXEC = 3, STAGE_USER = 4, STAGE_FILE = 5 };

enum {
    HEADER = 4,
    COMMANDS = 256,
    PAYLOAD_MAX = 65535,
    HOST_PORT = 1024,        /* where the host waits for the vsock channel */
    GUEST_PORT = 1023,       /* where that comes from: a port that only root may have */
};

/* channel.c: the byte streams to the host. */
struct channel {
    int fd;                  /* -1: there is none */
    u32 data_max;            /* bytes of data in one frame */
    u32 stdin_window;
    u32 output_window;       /* for each of stdout and stderr */
    u32 in_size, out_size;
    u8 *in, *out;
    u32 in_length, out_length;
};
extern struct channel serial, vsock;

int channel_open_serial(const char *path);
int channel_open_vsock(void);
int channel_receive(struct channel *c, void (*handle)(struct channel *c, u8 type, u8 id, const u8 *data, u32 n));
u8 *channel_space(struct channel *c);           /* room for data_max bytes of the next frame */
void channel_send(struct channel *c, u8 type, u8 id, u32 n);    /* of what was put there */
void channel_flush(struct channel *c);

/* command.c: what the host asked to run. */
u32 commands_poll(struct pollfd *fds);
void commands_ready(const struct pollfd *fds);
void command_frame(struct channel *c, u8 type, u8 id, const u8 *data, u32 n);
void command_reaped(int pid, int status);
void commands_cut_off(struct channel *c);       /* their channel is gone: end them */

/* files.c: users, and the kernel's clock and random numbers. */
struct user {
    u32 uid, gid;
    char home[128];
};
int find_user(const char *name, struct user *user);     /* by /etc/passwd; 0 or -errno */
void set_time(const u8 *data, u32 n);
void add_entropy(const u8 *data, u32 n);

/* drivers.c: kernel modules for the devices that are there. */
void load_drivers_of_root(const char *table);    /* of its disks, and of its file systems */
int load_drivers(int with_vsock);               /* the pid of the process that goes on for vsock's, or 0 */

/* network.c: cards that the kernel's command line gives an address. */
void network_up(void);

/* start.c: what only the first process does. */
extern int wants_vsock;
extern char init_path[64];                      /* who is to be the first process in our place; "": nobody */
void read_command_line(void);
void become_init(void);                         /* after start_early; comes back if there is none */
const char *start_early(void);                  /* returns the serial channel's path */
void start_late(void);
void mount_volumes(void);                       /* after drivers were loaded */
__attribute__((noreturn)) void start_console(void);

/* root.c: the root disk, where the guest has one. */
int root_wanted(void);
void root_start(void);                          /* mounts it and moves there */
void root_grow(const u8 *data, u32 n);
void root_finish(void);                         /* leaves what is written in a good state */
__attribute__((noreturn)) void finish(u32 reboot_command);

#endif
