/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

static int service;    /* of a service manager, which is the first process then */
static int loader; /* the process that loads vsock's driver; 0: none */

static void hello(struct channel *c)
{
    u8 *data = channel_space(c);
    memcpy(data, "kvmkit", 6);
    data[6] = VERSION;
    channel_send(c, HELLO, 0, 7);
}

static void handle(struct channel *c, u8 type, u8 id, const u8 *data, u32 n)
{
    if (type == HELLO)
        hello(c);
    else if (type == TIME)
        set_time(data, n);
    else if (type == ENTROPY)
        add_entropy(data, n);
    else if (type == GROW)
        root_grow(data, n);
    else if (type == POWEROFF && service) /* systemd(1): SIGRTMIN+4 powers off, +5 reboots */
        sys_kill(1, n && data[0] ? 34 + 5 : 34 + 4);
    else if (type == POWEROFF)
        finish(n && data[0] ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF);
    else if (id)
        command_frame(c, type, id, data, n);
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
    while ((pid = sys_wait(-1, &status, WNOHANG)) > 0) {
        if (pid == loader) {
            loader = 0;
            if (channel_open_vsock() >= 0)
                hello(&vsock);
        }
        command_reaped(pid, status);
    }
}

__attribute__((noreturn, used)) void agent_main(long *stack)
{
    static struct pollfd fds[3 + 3 * COMMANDS];
    char **argv = (char **)(stack + 1);
    int first_process = sys_getpid() == 1;
    u64 mask = BIT(SIGCHLD) | BIT(SIGPIPE);

    const char *path = first_process ? start_early() : stack[0] > 1 ? argv[1] : "/dev/ttyS1";
    if (first_process)
        become_init();
    service = !first_process && stack[0] > 2 && starts_with(argv[2], "service");
    if (service)
        read_command_line();
    if (first_process) {
        mask |= BIT(SIGUSR1) | BIT(SIGUSR2) | BIT(SIGTERM) | BIT(SIGINT);
        sys_reboot(LINUX_REBOOT_CMD_CAD_OFF);
    }
    sys_setmask(&mask);
    int signals = sys_signalfd(&mask);

    if (first_process && starts_with(path, "/dev/console")) {
        start_late();
        load_drivers(0);
        network_up();
        mount_volumes();
        start_console();
    }
    if (channel_open_serial(path) < 0) {
        static const char message[] = "kvmkit agent: can't open its channel: ";
        sys_write(2, message, sizeof message - 1);
        sys_write(2, path, strlen(path));
        sys_write(2, "\n", 1);
        if (first_process)
            finish(LINUX_REBOOT_CMD_POWER_OFF);
        sys_exit(1);
    }
    hello(&serial);
    channel_flush(&serial);
    if (first_process)
        start_late();
    if (first_process || service) {
        loader = load_drivers(wants_vsock);
        network_up();
        mount_volumes();
    }

    for (;;) {
        fds[0] = (struct pollfd){.fd = serial.fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = signals, .events = POLLIN};
        fds[2] = (struct pollfd){.fd = vsock.fd, .events = POLLIN}; /* one that is -1 is passed over */
        u32 n = 3 + commands_poll(fds + 3);
        channel_flush(&serial);
        channel_flush(&vsock);
        if (sys_poll(fds, n, -1) <= 0)
            continue;
        if (fds[1].revents)
            take_signals(signals, first_process);
        commands_ready(fds + 3);
        if (fds[2].revents && !channel_receive(&vsock, handle)) {
            sys_close(vsock.fd);
            vsock.fd = -1;
            commands_cut_off(&vsock);
        }
        if (fds[0].revents && !channel_receive(&serial, handle)) {
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
