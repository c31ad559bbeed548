/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

static void hello(void)
{
    u8 *data = channel_space();
    memcpy(data, "kvmkit", 6);
    data[6] = VERSION;
    channel_send(HELLO, 0, 7);
}

static void handle(u8 type, u8 id, const u8 *data, u32 n)
{
    if (type == HELLO)
        hello();
    else if (type == POWEROFF)
        finish(n && data[0] ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF);
    else if (id)
        command_frame(type, id, data, n);
}

#define BIT(signal) (1ull << ((signal) - 1))

static void take_signals(int fd, int first_process)
{
    static struct signalfd_siginfo info;
    while (sys_read(fd, &info, sizeof info) == sizeof info) {
        /* What busybox's poweroff, halt and reboot send, and the kernel's Ctrl-Alt-Del. */
        if (first_process && info.ssi_signo == SIGUSR2)
            finish(LINUX_REBOOT_CMD_POWER_OFF);
        if (first_process && info.ssi_signo == SIGUSR1)
            finish(LINUX_REBOOT_CMD_HALT);
        if (first_process && (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT))
            finish(LINUX_REBOOT_CMD_RESTART);
    }
    int pid, status;
    while ((pid = sys_wait(-1, &status, WNOHANG)) > 0)
        command_reaped(pid, status);
}

__attribute__((noreturn, used)) void agent_main(long *stack)
{
    static struct pollfd fds[2 + 3 * COMMANDS];
    char **argv = (char **)(stack + 1);
    int first_process = sys_getpid() == 1;
    u64 mask = BIT(SIGCHLD) | BIT(SIGPIPE);

    const char *path = first_process ? start_early() : stack[0] > 1 ? argv[1] : "/dev/ttyS1";
    if (first_process) {
        mask |= BIT(SIGUSR1) | BIT(SIGUSR2) | BIT(SIGTERM) | BIT(SIGINT);
        sys_reboot(LINUX_REBOOT_CMD_CAD_OFF);
    }
    sys_setmask(&mask);
    int signals = sys_signalfd(&mask);

    if (first_process && starts_with(path, "/dev/console")) {
        start_late();
        start_console();
    }
    if (channel_open(path) < 0) {
        static const char message[] = "kvmkit agent: can't open its channel: ";
        sys_write(2, message, sizeof message - 1);
        sys_write(2, path, strlen(path));
        sys_write(2, "\n", 1);
        if (first_process)
            finish(LINUX_REBOOT_CMD_POWER_OFF);
        sys_exit(1);
    }
    hello();
    channel_flush();
    if (first_process)
        start_late();

    for (;;) {
        fds[0] = (struct pollfd){.fd = channel_fd(), .events = POLLIN};
        fds[1] = (struct pollfd){.fd = signals, .events = POLLIN};
        u32 n = 2 + commands_poll(fds + 2);
        channel_flush();
        if (sys_poll(fds, n, -1) <= 0)
            continue;
        if (fds[1].revents)
            take_signals(signals, first_process);
        commands_ready(fds + 2);
        if (fds[0].revents && !channel_receive(handle)) {
            if (!first_process)
                sys_exit(0);
            finish(LINUX_REBOOT_CMD_POWER_OFF); /* a hung-up line never comes back */
        }
    }
}

__asm__(".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call agent_main\n");
