/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The agent: the guest's first process, which runs commands for the host over one byte stream.
 *
 * The protocol, version 1 (the host's half is kvmkit.guest.protocol; change both together)
 * ---------------------------------------------------------------------------------------
 * A frame is: type u8, command id u8, payload length u16, payload. Numbers are little-endian. On a
 * serial port each byte costs an exit of the virtual machine, hence four bytes and not more.
 * The host picks the ids (1-255) and uses one again only after its EXIT or ERROR. Id 0 is the agent.
 *
 *   type          direction  payload
 *   HELLO    0x81 both       "kvmkit", version u8. The agent sends it when it is ready and whenever asked.
 *   EXEC     0x82 to guest   flags u8, rows u16, columns u16, argc u16, envc u16, then NUL-ended strings:
 *                            directory (may be empty), arguments, environment
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
 *
 * Flow control: each stream of a command starts with a window (below); data beyond it is not sent until
 * CREDIT comes. So neither side ever buffers more than the window, and a full pipe stalls one stream only.
 */
#ifndef AGENT_H
#define AGENT_H

#include "sys.h"

enum { VERSION = 1 };
enum {
    HELLO = 0x81, EXEC, STDIN, SIGNAL, RESIZE, CREDIT, CLOSE, POWEROFF,
    STARTED, STDOUT, STDERR, EXIT, ERROR,
};
enum { FLAG_TTY = 1, FLAG_STDIN = 2 };
enum { STAGE_RESOURCES = 1, STAGE_DIRECTORY = 2, STAGE_EXEC = 3 };

enum {
    HEADER = 4,
    DATA_MAX = 4096,         /* bytes of data in one frame */
    STDIN_WINDOW = 8192,
    OUTPUT_WINDOW = 65536,   /* for each of stdout and stderr */
    COMMANDS = 256,
};

/* channel.c: the byte stream to the host. */
int channel_open(const char *path);
int channel_fd(void);
int channel_receive(void (*handle)(u8 type, u8 id, const u8 *data, u32 n));
u8 *channel_space(void);                        /* room for DATA_MAX bytes of the next frame */
void channel_send(u8 type, u8 id, u32 n);       /* of what was put there */
void channel_flush(void);

/* command.c: what the host asked to run. */
u32 commands_poll(struct pollfd *fds);
void commands_ready(const struct pollfd *fds);
void command_frame(u8 type, u8 id, const u8 *data, u32 n);
void command_reaped(int pid, int status);

/* start.c: what only the first process does. */
const char *start_early(void);                  /* returns the channel's path */
void start_late(void);
__attribute__((noreturn)) void start_console(void);

/* root.c: the root disk, where the guest has one, and the drivers of its devices. */
int root_wanted(void);
void root_start(void);                          /* mounts it and moves there */
void root_drivers(void);                        /* drivers of all other devices */
void root_finish(void);                         /* leaves what is written in a good state */
__attribute__((noreturn)) void finish(u32 reboot_command);

#endif
