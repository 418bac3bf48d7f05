/* A native service: answers every message on a subject with its own payload, over plain NATS text protocol.
 *
 * Environment: NATS_URL      nats://[user:password@]host[:port] of the server
 *              ECHO_SUBJECT  where it listens; echo.service if not set
 * Lines on standard output and error become the workload's log. SIGTERM ends it in good order.
 * Copies share the subject by a queue group, so each message gets one answer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096u
#define PAYLOAD_MAX_BYTES (8u << 20)
#define BUFFER_BYTES (LINE_MAX_BYTES + PAYLOAD_MAX_BYTES)

static volatile sig_atomic_t stopping;
static char *buffer; /* what has arrived: from `begin` to `end` */
static size_t begin, end;

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* nats://user:password@host:port, in place; the parts point into `url`. */
static void split_url(char *url, char **user, char **password, char **host, char **port) {
    char *at, *colon;
    if (strncmp(url, "nats://", 7) == 0) url += 7;
    *user = *password = NULL;
    if ((at = strrchr(url, '@')) != NULL) {
        *at = '\0';
        *user = url;
        if ((colon = strchr(url, ':')) != NULL) {
            *colon = '\0';
            *password = colon + 1;
        }
        url = at + 1;
    }
    url[strcspn(url, "/,")] = '\0';
    *host = url;
    *port = "4222";
    if (*url == '[' && (at = strchr(url, ']')) != NULL) { /* an IPv6 address */
        *host = url + 1;
        *at = '\0';
        url = at + 1;
    }
    if ((colon = strrchr(url, ':')) != NULL) {
        *colon = '\0';
        *port = colon + 1;
    }
}

static int connect_to(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list, *address;
    int result = getaddrinfo(host, port, &hints, &list), fd = -1;
    if (result != 0) fail("cannot find %s: %s", host, gai_strerror(result));
    for (address = list; address != NULL; address = address->ai_next) {
        fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        if (fd >= 0 && connect(fd, address->ai_addr, address->ai_addrlen) == 0) break;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    if (fd < 0) fail("cannot connect to %s:%s: %s", host, port, strerror(errno));
    return fd;
}

/* With MSG_MORE in `flags` the kernel waits for the rest of the message, and sends both at once. */
static void write_all(int fd, const char *data, size_t size, int flags) {
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL | flags);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail("lost the server: %s", strerror(errno));
        data += n;
        size -= (size_t)n;
    }
}

__attribute__((format(printf, 3, 4))) static void send_line(int fd, int flags, const char *format, ...) {
    char line[LINE_MAX_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= sizeof line) fail("a line to the server is too long");
    write_all(fd, line, (size_t)size, flags);
}

/* Wait for more to arrive; 0 when we are to stop. Signals come in only while we wait here. */
static int receive(int fd, const sigset_t *while_waiting) {
    if (begin > 0) {
        memmove(buffer, buffer + begin, end - begin);
        end -= begin;
        begin = 0;
    }
    if (end == BUFFER_BYTES) fail("the server sent more than fits");
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (!stopping && ppoll(&wait, 1, NULL, while_waiting) < 0 && errno != EINTR) fail("ppoll: %s", strerror(errno));
    if (stopping) return 0;
    if (wait.revents == 0) return 1;
    ssize_t n = recv(fd, buffer + end, BUFFER_BYTES - end, MSG_DONTWAIT);
    if (n == 0) fail("the server closed the connection");
    if (n < 0 && errno != EAGAIN && errno != EINTR) fail("lost the server: %s", strerror(errno));
    if (n > 0) end += (size_t)n;
    return 1;
}

/* A whole line, ended by NUL instead of CR LF; NULL when we are to stop. */
static char *next_line(int fd, const sigset_t *while_waiting) {
    for (;;) {
        char *newline = memchr(buffer + begin, '\n', end - begin);
        if (newline != NULL) {
            char *line = buffer + begin;
            *newline = '\0';
            if (newline > line && newline[-1] == '\r') newline[-1] = '\0';
            begin = (size_t)(newline - buffer) + 1;
            return line;
        }
        if (end - begin > LINE_MAX_BYTES && begin == 0) fail("the server sent a line that is too long");
        if (!receive(fd, while_waiting)) return NULL;
    }
}

/* MSG <subject> <sid> [reply] <bytes>, or HMSG with <header bytes> before the last; the payload follows, and CR LF. */
static int answer(int fd, char *line, const sigset_t *while_waiting) {
    char *words[6], *rest = line, *word;
    int count = 0, has_headers = line[0] == 'H';
    char reply[LINE_MAX_BYTES] = "";
    while (count < 6 && (word = strtok_r(rest, " \t", &rest)) != NULL) words[count++] = word;
    int plain = has_headers ? 5 : 4; /* how many words there are without a reply subject */
    if (count != plain && count != plain + 1) fail("the server sent a message we do not understand");
    size_t total = strtoul(words[count - 1], NULL, 10);
    size_t headers = has_headers ? strtoul(words[count - 2], NULL, 10) : 0;
    if (total > PAYLOAD_MAX_BYTES || headers > total) fail("the server sent a message that is too large");
    if (count == plain + 1) strcpy(reply, words[3]); /* a line is never longer than LINE_MAX_BYTES */
    while (end - begin < total + 2)
        if (!receive(fd, while_waiting)) return 0;
    if (reply[0] != '\0') {
        send_line(fd, MSG_MORE, "PUB %s %zu\r\n", reply, total - headers);
        write_all(fd, buffer + begin + headers, total - headers, MSG_MORE);
        write_all(fd, "\r\n", 2, 0);
    }
    begin += total + 2;
    return 1;
}

static void quote(char *out, size_t size, const char *text) {
    size_t n = 0;
    for (; *text != '\0' && n + 3 < size; text++) {
        if (*text == '"' || *text == '\\') out[n++] = '\\';
        out[n++] = *text;
    }
    out[n] = '\0';
}

int main(void) {
    const char *given = getenv("NATS_URL"), *subject = getenv("ECHO_SUBJECT");
    if (given == NULL || *given == '\0') fail("NATS_URL is not set");
    if (subject == NULL || *subject == '\0') subject = "echo.service";
    if (strpbrk(subject, " \t\r\n") != NULL) fail("ECHO_SUBJECT is no subject");
    setvbuf(stdout, NULL, _IOLBF, 0);

    sigset_t blocked, while_waiting;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, &while_waiting);
    sigdelset(&while_waiting, SIGTERM);
    sigdelset(&while_waiting, SIGINT);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    char *url = strdup(given), *user, *password, *host, *port, *line;
    buffer = malloc(BUFFER_BYTES);
    if (url == NULL || buffer == NULL) fail("out of memory");
    split_url(url, &user, &password, &host, &port);
    int fd = connect_to(host, port);
    if ((line = next_line(fd, &while_waiting)) == NULL || strncmp(line, "INFO ", 5) != 0) fail("this is no NATS server");
    char login[1024] = "", name[400], secret[400];
    if (user != NULL) {
        quote(name, sizeof name, user);
        quote(secret, sizeof secret, password != NULL ? password : "");
        snprintf(login, sizeof login, "\"user\":\"%s\",\"pass\":\"%s\",", name, secret);
    }
    send_line(fd, 0, "CONNECT {\"verbose\":false,\"pedantic\":false,%s\"lang\":\"c\",\"version\":\"1\",\"protocol\":1,"
                  "\"headers\":true,\"name\":\"echo-service\"}\r\nSUB %s echo 1\r\nPING\r\n", login, subject);

    while ((line = next_line(fd, &while_waiting)) != NULL) {
        if (strncmp(line, "MSG ", 4) == 0 || strncmp(line, "HMSG ", 5) == 0) {
            if (!answer(fd, line, &while_waiting)) break;
        } else if (strcmp(line, "PING") == 0) {
            write_all(fd, "PONG\r\n", 6, 0);
        } else if (strcmp(line, "PONG") == 0) {
            printf("listening on %s\n", subject);
        } else if (strncmp(line, "-ERR", 4) == 0) {
            fail("the server refused: %s", line);
        }
    }
    write_all(fd, "UNSUB 1\r\n", 9, 0);
    close(fd);
    puts("stopped");
    return 0;
}
