/* What stands for Python where modelgit is started from a warm process (see warm_server.py).
 *
 * `python [-P] -m modelgit[.cli.plumbing] …` is asked of the server whose sockets lie beside this program: it gets our
 * arguments, environment, directory and standard streams, and forks. We pass signals on and end as its child ends; when
 * we are killed, the server sees that and kills the child. Everything else, and whatever the server refuses, is done by
 * Python itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;
static volatile pid_t child;

static void python(char **arguments) {
    arguments[0] = PYTHON;
    execv(PYTHON, arguments);
    _exit(127);
}

static int wanted(int count, char **arguments) {
    int at = count > 1 && !strcmp(arguments[1], "-P") ? 2 : 1;
    return count > at + 1 && !strcmp(arguments[at], "-m") &&
           (!strcmp(arguments[at + 1], "modelgit") || !strcmp(arguments[at + 1], "modelgit.cli.plumbing"));
}

/* Tells whether a command is likely to need torch: forking from where it is loaded costs more. */
static int heavy(char **arguments) {
    static const char *verbs[] = {"run", "plumbing-worker", "evaluate", "verify", "--recipe", "align", "merge"};
    for (char **word = arguments; *word; word++)
        for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
            if (!strcmp(*word, verbs[i]))
                return 1;
    return 0;
}

/* Returns a line to the server beside the program at `path`, -1 where there is none. */
static int server(const char *path, const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int place = strrchr(path, '/') - path;
    if (snprintf(address.sun_path, sizeof address.sun_path, "%.*s/%s", place, path, name) >= (int)sizeof address.sun_path)
        return -1;
    int line = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connect(line, (struct sockaddr *)&address, sizeof address) ? -1 : line;
}

static int send_all(int line, const char *bytes, size_t left) {
    while (left) {
        ssize_t sent = send(line, bytes, left, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return -1;
        if (sent > 0)
            bytes += sent, left -= sent;
    }
    return 0;
}

static int receive(int line, int32_t *number) {
    return recv(line, number, sizeof *number, MSG_WAITALL) == sizeof *number ? 0 : -1;
}

/* Sends the standard streams and the directory, with how many bytes follow. */
static int send_places(int line, uint32_t length) {
    int places[4] = {0, 1, 2, open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    char room[CMSG_SPACE(sizeof places)] = {0};
    struct iovec bytes = {&length, sizeof length};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof places);
    memcpy(CMSG_DATA(head), places, sizeof places);
    return sendmsg(line, &message, MSG_NOSIGNAL) == sizeof length ? 0 : -1;
}

/* Sends how many arguments there are, the arguments, and the environment, each ended by a zero. */
static int send_words(int line, int count, char **arguments) {
    char number[16];
    char *first[] = {number, NULL}, **lists[] = {first, arguments + 1, environ};
    size_t length = 0;
    snprintf(number, sizeof number, "%d", count - 1);
    for (int i = 0; i < 3; i++)
        for (char **word = lists[i]; *word; word++)
            length += strlen(*word) + 1;
    char *text = malloc(length), *end = text;
    for (int i = 0; i < 3; i++)
        for (char **word = lists[i]; *word; word++)
            end = stpcpy(end, *word) + 1;
    return send_places(line, length) || send_all(line, text, length) ? -1 : 0;
}

static void pass_on(int number) { kill(child, number); }

int main(int count, char **arguments) {
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0 || !wanted(count, arguments))
        python(arguments);
    program[length] = 0;
    int32_t told = 0;
    int line = server(program, heavy(arguments) ? "heavy" : "light");
    if (line < 0 || send_words(line, count, arguments) || receive(line, &told) || !told)
        python(arguments);
    child = told;
    struct sigaction passing = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    int passed[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++)
        sigaction(passed[i], &passing, NULL);
    close(0), close(1), close(2);
    if (receive(line, &told))
        return 70;
    if (told < 0) { /* ended by a signal: so do we */
        signal(-told, SIG_DFL);
        raise(-told);
    }
    return told;
}
