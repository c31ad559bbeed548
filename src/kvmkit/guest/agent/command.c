/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "agent.h"

struct command {
    struct channel *channel;
    u8 *buffer;           /* of stdin_window + 1 bytes; NULL: nothing waits. + 1: a terminal's end */
    int pid;              /* 0: none, or already reaped */
    int in, out, err;     /* our ends of its pipes, or out alone for a terminal; -1: closed */
    int terminal;         /* the terminal's other side, kept so that it outlives whoever closes it */
    u32 credit[3];        /* [0]: stdin bytes taken and not yet credited; [1], [2]: output still allowed */
    u32 left[3];          /* after the exit: output that was there at that moment and is still to be sent */
    u32 head, length;     /* of what waits in buffer */
    u32 poll_in, poll_out, poll_err;
    u8 used, exited, tty, in_ended;
    u8 file;              /* READ or WRITE: there is no process, and `value` is its errno */
    u8 how, value;
};

static struct command table[COMMANDS];
static u32 used_end;                           /* no id from here on is in use */

static struct {
    u8 stage;
    u8 error;
} failure; /* written by a child that could not start, read by its parent: vfork shares memory */

static void shut(int *fd)
{
    if (*fd >= 0)
        sys_close(*fd);
    *fd = -1;
}

static void send_u32(struct channel *to, u8 type, u8 id, int stream, u32 value)
{
    u8 *data = channel_space(to);
    if (stream >= 0)
        *data++ = stream;
    for (int i = 0; i < 4; i++)
        data[i] = value >> 8 * i;
    channel_send(to, type, id, stream >= 0 ? 5 : 4);
}

static void send_2(struct channel *to, u8 type, u8 id, u8 a, u8 b)
{
    u8 *data = channel_space(to);
    data[0] = a;
    data[1] = b;
    channel_send(to, type, id, 2);
}

/* ---- input ---- */

static void input_gone(u8 id, struct command *c)
{
    if (!c->in_ended) {
        channel_space(c->channel)[0] = 0;
        channel_send(c->channel, CLOSE, id, 1);
    }
    if (c->tty)
        c->in = -1;
    else
        shut(&c->in);
    c->length = 0;
}

/* Credit for what was taken, when it is worth a frame. */
static void grant(u8 id, struct command *c)
{
    if (c->credit[0] >= c->channel->stdin_window / 2 && !c->in_ended) {
        send_u32(c->channel, CREDIT, id, 0, c->credit[0]);
        c->credit[0] = 0;
    }
}

/* Writes to the command, or to its file; how many bytes it took, or -1: it takes no more at all. */
static long give(u8 id, struct command *c, const u8 *data, u32 n)
{
    long done = sys_write(c->in, data, n);
    if (done == -EAGAIN || done == -EINTR)
        return 0;
    if (done < 0) {
        if (c->file)
            c->value = -done;
        input_gone(id, c);
        return -1;
    }
    c->credit[0] += done;
    return done;
}

static void pump_in(u8 id, struct command *c)
{
    while (c->in >= 0 && c->length) {
        long n = give(id, c, c->buffer + c->head, c->length);
        if (n < 0)
            return;
        c->head += n;
        c->length -= n;
        if (n == 0 && !c->file)
            break;
    }
    grant(id, c);
    if (c->length)
        return;
    if (c->in_ended && c->in >= 0 && !c->tty)
        shut(&c->in);
}

static void input(u8 id, struct command *c, const u8 *data, u32 n)
{
    static const u8 end_of_file = 4; /* what a terminal's line discipline takes for the end */
    if (c->in < 0 || c->in_ended)
        return;
    if (n == 0) {
        c->in_ended = 1;
        if (c->tty) {
            data = &end_of_file;
            n = 1;
        }
    }
    while (n && !c->length) { /* mostly it takes it at once, and nothing is copied */
        long done = give(id, c, data, n);
        if (done < 0)
            return;
        if (!done && !c->file)
            break;
        data += done;
        n -= done;
    }
    u32 size = c->channel->stdin_window + 1;
    if (n && !c->buffer && sys_map(&c->buffer, size) < 0)
        return input_gone(id, c);
    if (c->length + n > size)
        return; /* a host that ignores the window */
    if (n && c->head + c->length + n > size) {
        memmove(c->buffer, c->buffer + c->head, c->length);
        c->head = 0;
    }
    if (n)
        memcpy(c->buffer + c->head + c->length, data, n);
    c->length += n;
    pump_in(id, c);
}

/* ---- output ---- */

/* Sends one frame of what there is; 0 when there is nothing, or no window for it. */
static int pump_out(u8 id, struct command *c, int stream)
{
    int *fd = stream == 1 ? &c->out : &c->err;
    u32 most = c->channel->data_max;
    u32 want = c->credit[stream] < most ? c->credit[stream] : most;
    if (*fd < 0 || !want)
        return 0;
    long n = sys_read(*fd, channel_space(c->channel), want);
    if (n == -EAGAIN || n == -EINTR)
        return 0;
    if (n <= 0) {
        if (c->tty)
            c->in = -1;
        if (c->file)
            c->value = -n;
        shut(fd);
        return 0;
    }
    channel_send(c->channel, stream == 1 ? STDOUT : STDERR, id, n);
    c->credit[stream] -= n;
    c->left[stream] = c->left[stream] > n ? c->left[stream] - n : 0;
    return 1;
}

/* True when all that the command had written at its exit is sent. Processes it left behind may go on
 * writing: nobody waits for them. */
static int drained(u8 id, struct command *c, int stream)
{
    while (c->left[stream])
        if (!pump_out(id, c, stream))
            return (stream == 1 ? c->out : c->err) < 0 || c->credit[stream];
    return 1;
}

static void note_exit(struct command *c, int status)
{
    c->pid = 0;
    c->exited = 1;
    c->how = (status & 0x7f) != 0;
    c->value = c->how ? status & 0x7f : status >> 8;
    c->left[1] = c->left[2] = 65536; /* a terminal does not tell, but holds less than this */
    if (!c->tty) {
        if (c->out >= 0)
            sys_ioctl(c->out, FIONREAD, &c->left[1]);
        if (c->err >= 0)
            sys_ioctl(c->err, FIONREAD, &c->left[2]);
    }
}

static void end(u8 id, struct command *c)
{
    if (!c->tty)
        shut(&c->in);
    shut(&c->out);
    shut(&c->err);
    shut(&c->terminal);
    if (c->buffer)
        sys_unmap(c->buffer, c->channel->stdin_window + 1);
    c->buffer = NULL;
    c->used = 0;
    while (used_end && !table[used_end - 1].used)
        used_end--;
    send_2(c->channel, EXIT, id, c->how, c->value);
}

void command_reaped(int pid, int status)
{
    for (u32 id = 1; id < used_end; id++)
        if (table[id].used && table[id].pid == pid)
            note_exit(&table[id], status);
}

/* ---- start ---- */

struct request {
    const char *directory;
    char **argv, **env;
    int in, out, err;
    u8 tty;
    struct user *user; /* NULL: root, with all that init has */
};

static int run_file(const char *path, char **argv, char **env)
{
    int error = sys_execve(path, argv, env);
    if (error != -ENOEXEC)
        return error;
    static char *script[2 + 2048]; /* a script without "#!" is the shell's, as execvp has it */
    u32 n = 0;
    script[n++] = "sh";
    script[n++] = (char *)path;
    for (char **a = argv + 1; *argv && *a && n < sizeof script / sizeof *script - 1; a++)
        script[n++] = *a;
    script[n] = NULL;
    return sys_execve("/bin/sh", script, env);
}

static int run(const char *name, char **argv, char **env)
{
    static char path[4096];
    u32 length = strlen(name);
    const char *slash = name, *directory = "";
    while (*slash && *slash != '/')
        slash++;
    if (!length)
        return -ENOENT;
    if (*slash)
        return run_file(name, argv, env);
    for (char **e = env; *e; e++)
        if (starts_with(*e, "PATH="))
            directory = *e + 5;
    int result = -ENOENT;
    while (*directory) {
        u32 n = 0;
        while (directory[n] && directory[n] != ':')
            n++;
        if (n + length + 2 <= sizeof path) {
            memcpy(path, directory, n);
            path[n] = '/';
            memcpy(path + n + 1, name, length + 1);
            int error = run_file(n ? path : name, argv, env);
            if (error == -EACCES)
                result = error; /* found, but not for us; a later directory may do */
            else if (error != -ENOENT && error != -ENOTDIR)
                return error;
        }
        directory += n + (directory[n] == ':');
    }
    return result;
}

static int become(const struct user *user, int terminal)
{
    int error = 0;
    if (terminal >= 0)
        sys_fchown(terminal, user->uid, ~0u);
    if ((error = sys_setgroups(1, &user->gid)) >= 0 && (error = sys_setgid(user->gid)) >= 0)
        error = sys_setuid(user->uid);
    return error;
}

__attribute__((noinline, noreturn)) static void child(const struct request *r)
{
    static const u64 none;
    sys_setsid();
    if (r->tty)
        sys_ioctl(r->in, TIOCSCTTY, 0);
    sys_dup2(r->in, 0);
    sys_dup2(r->out, 1);
    sys_dup2(r->err, 2);
    sys_setmask(&none);
    failure.stage = STAGE_USER;
    int error = r->user ? become(r->user, r->tty ? r->in : -1) : 0;
    if (error < 0) {
        failure.error = -error;
        sys_exit(127);
    }
    failure.stage = STAGE_DIRECTORY;
    error = *r->directory ? sys_chdir(r->directory) : 0;
    if (error >= 0) {
        failure.stage = STAGE_EXEC;
        error = run(r->argv[0], r->argv, r->env);
    }
    failure.error = -error;
    sys_exit(127);
}

static int open_terminal(struct command *c, const u8 *size)
{
    c->out = sys_open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (c->out < 0)
        return c->out;
    int locked = 0;
    struct winsize window = {.ws_row = size[0] | size[1] << 8, .ws_col = size[2] | size[3] << 8};
    sys_ioctl(c->out, TIOCSPTLCK, &locked);
    sys_ioctl(c->out, TIOCSWINSZ, &window);
    sys_nonblock(c->out);
    c->in = c->out;
    return c->terminal = sys_ioctl(c->out, TIOCGPTPEER, (void *)(long)(O_RDWR | O_NOCTTY | O_CLOEXEC));
}

/* Makes a pipe; ours is the end that does not block. */
static int open_pipe(int *ours, int *theirs, int we_write)
{
    int ends[2];
    int error = sys_pipe(ends, O_CLOEXEC);
    if (error < 0)
        return error;
    *ours = ends[we_write];
    *theirs = ends[!we_write];
    return sys_nonblock(*ours);
}

static void prepare(struct command *c, struct channel *channel)
{
    *c = (struct command){.channel = channel, .in = -1, .out = -1, .err = -1, .terminal = -1};
    c->credit[1] = c->credit[2] = channel->output_window;
}

static void running(u8 id, struct command *c)
{
    c->used = 1;
    if (used_end <= id)
        used_end = id + 1;
    send_u32(c->channel, STARTED, id, -1, c->pid);
}

static void start(u8 id, struct command *c, struct request *r, u8 flags, const u8 *size)
{
    int error = 0;
    c->tty = flags & FLAG_TTY;
    r->in = r->out = r->err = -1;
    r->tty = c->tty;
    failure.error = 0;
    if (c->tty) {
        error = r->in = r->out = r->err = open_terminal(c, size);
    } else {
        error = flags & FLAG_STDIN ? open_pipe(&c->in, &r->in, 1) : (r->in = sys_open("/dev/null", O_RDWR | O_CLOEXEC));
        if (error >= 0)
            error = open_pipe(&c->out, &r->out, 0);
        if (error >= 0)
            error = open_pipe(&c->err, &r->err, 0);
    }
    int pid = error < 0 ? error : sys_vfork();
    if (pid == 0)
        child(r);
    if (!c->tty) {
        shut(&r->in);
        shut(&r->out);
        shut(&r->err);
    }
    if (pid < 0) {
        failure.stage = STAGE_RESOURCES;
        failure.error = -pid;
    }
    if (failure.error) {
        int status;
        if (pid > 0)
            sys_wait(pid, &status, 0);
        if (!c->tty)
            shut(&c->in);
        shut(&c->out);
        shut(&c->err);
        shut(&c->terminal);
        send_2(c->channel, ERROR, id, failure.stage, failure.error);
        return;
    }
    c->pid = pid;
    running(id, c);
}

static void exec(u8 id, struct command *c, const u8 *data, u32 n)
{
    enum { FIXED = 9, POINTERS = 2048 };
    static char home[8 + sizeof ((struct user *)0)->home] = "HOME=";
    static char *const defaults[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", home};
    static const char *const names[] = {"PATH=", "HOME="};
    static char *pointers[POINTERS + 8];
    static struct user user;
    struct request r = {.user = NULL};
    struct channel *to = c->channel;
    u32 filled = 0, argc, envc;

    if (n <= FIXED || data[n - 1]) {
        send_2(to, ERROR, id, STAGE_RESOURCES, EINVAL);
        return;
    }
    argc = data[5] | data[6] << 8;
    envc = data[7] | data[8] << 8;
    if (argc + envc > POINTERS) {
        send_2(to, ERROR, id, STAGE_RESOURCES, E2BIG);
        return;
    }
    char *at = (char *)data + FIXED, *stop = (char *)data + n;
    r.directory = at;
    at += strlen(at) + 1;
    const char *name = at < stop ? at : "";
    at += at < stop ? strlen(at) + 1 : 0;
    memcpy(home + 5, "/root", 6);
    if (*name) {
        int error = find_user(name, &user);
        if (error < 0) {
            send_2(to, ERROR, id, STAGE_USER, -error);
            return;
        }
        r.user = &user;
        memcpy(home + 5, user.home, strlen(user.home) + 1);
    }
    r.argv = pointers;
    for (u32 i = 0; i < argc && at < stop; i++, at += strlen(at) + 1)
        pointers[filled++] = at;
    pointers[filled++] = NULL;
    r.env = pointers + filled;
    for (u32 i = 0; i < envc && at < stop; i++, at += strlen(at) + 1)
        pointers[filled++] = at;
    pointers[filled] = NULL;
    for (u32 i = 0; i < 2; i++) {
        char **e = r.env;
        while (*e && !starts_with(*e, names[i]))
            e++;
        if (!*e) {
            pointers[filled++] = defaults[i];
            pointers[filled] = NULL;
        }
    }
    if (!r.argv[0]) {
        send_2(to, ERROR, id, STAGE_RESOURCES, EINVAL);
        return;
    }
    start(id, c, &r, data[0], data + 1);
}

/* ---- files ---- */

static void file(u8 id, struct command *c, u8 type, const u8 *data, u32 n)
{
    u32 skip = type == WRITE ? 2 : 0;
    int error = -EINVAL;
    if (n > skip + 1 && !data[n - 1]) {
        const char *path = (const char *)data + skip;
        if (type == READ) {
            struct stat found;
            error = c->out = sys_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
            if (error >= 0 && sys_fstat(c->out, &found) >= 0 && (found.st_mode & S_IFMT) != S_IFREG)
                error = (found.st_mode & S_IFMT) == S_IFDIR ? -EISDIR : -EINVAL;
        } else {
            error = c->in = sys_create(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, data[0] | data[1] << 8);
        }
    }
    if (error < 0) {
        shut(&c->out);
        send_2(c->channel, ERROR, id, STAGE_FILE, -error);
        return;
    }
    c->file = type;
    running(id, c);
}

void command_frame(struct channel *channel, u8 type, u8 id, const u8 *data, u32 n)
{
    struct command *c = &table[id];
    if ((type == EXEC || type == READ || type == WRITE) && !c->used) {
        prepare(c, channel);
        return type == EXEC ? exec(id, c, data, n) : file(id, c, type, data, n);
    }
    if (!c->used || c->channel != channel)
        return; /* crossed its EXIT on the way */
    if (type == STDIN)
        input(id, c, data, n);
    else if (type == SIGNAL && n >= 1 && c->file) {
        c->exited = 1; /* whatever the signal is */
        c->value = EINTR;
    } else if (type == SIGNAL && n >= 1 && c->pid)
        sys_kill(-c->pid, data[0]);
    else if (type == RESIZE && n >= 4 && c->tty) {
        struct winsize window = {.ws_row = data[0] | data[1] << 8, .ws_col = data[2] | data[3] << 8};
        sys_ioctl(c->out, TIOCSWINSZ, &window);
    } else if (type == CREDIT && n >= 5 && (data[0] == 1 || data[0] == 2)) {
        u32 more = data[1] | data[2] << 8 | data[3] << 16 | (u32)data[4] << 24;
        u32 room = c->channel->output_window - c->credit[data[0]];
        c->credit[data[0]] += more < room ? more : room;
    } else if (type == CLOSE && n >= 1 && (data[0] == 1 || data[0] == 2)) {
        if (c->tty)
            c->in = -1;
        shut(data[0] == 1 ? &c->out : &c->err);
    }
}

/* ---- waiting ---- */

static u32 want(struct pollfd *fds, u32 *n, int fd, short events)
{
    fds[*n] = (struct pollfd){.fd = fd, .events = events};
    return (*n)++;
}

enum { NOT_POLLED = ~0u };

/* Ends what has ended, then lists what the others wait for. At most 3 entries for each command. */
u32 commands_poll(struct pollfd *fds)
{
    u32 n = 0;
    for (u32 id = 1; id < used_end; id++) {
        struct command *c = &table[id];
        if (!c->used)
            continue;
        if (c->file && c->in < 0 && c->out < 0)
            c->exited = 1;
        if (c->exited) {
            if (drained(id, c, 1) & drained(id, c, 2))
                end(id, c);
            continue; /* else only credit helps, and that comes by the channel */
        }
        c->poll_in = c->poll_out = c->poll_err = NOT_POLLED;
        /* A pipe without data is watched as well: POLLERR tells that its reader has gone. */
        if (c->in >= 0 && (c->length || !c->tty) && !c->file)
            c->poll_in = want(fds, &n, c->in, c->length ? POLLOUT : 0);
        if (c->out >= 0 && c->credit[1])
            c->poll_out = want(fds, &n, c->out, POLLIN);
        if (c->err >= 0 && c->credit[2])
            c->poll_err = want(fds, &n, c->err, POLLIN);
    }
    return n;
}

void commands_cut_off(struct channel *channel)
{
    for (u32 id = 1; id < used_end; id++) {
        struct command *c = &table[id];
        if (!c->used || c->channel != channel)
            continue;
        if (c->pid)
            sys_kill(-c->pid, SIGKILL);
        shut(&c->out);
        shut(&c->err);
        if (c->file)
            shut(&c->in);
        c->left[1] = c->left[2] = 0;
    }
}

void commands_ready(const struct pollfd *fds)
{
    for (u32 id = 1; id < used_end; id++) {
        struct command *c = &table[id];
        if (!c->used || c->exited)
            continue;
        if (c->poll_in != NOT_POLLED && fds[c->poll_in].revents) {
            if (fds[c->poll_in].revents & POLLERR)
                input_gone(id, c);
            else
                pump_in(id, c);
        }
        if (c->poll_out != NOT_POLLED && fds[c->poll_out].revents)
            pump_out(id, c, 1);
        if (c->poll_err != NOT_POLLED && fds[c->poll_err].revents)
            pump_out(id, c, 2);
    }
}
