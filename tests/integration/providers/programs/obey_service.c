/* Does what its arguments say; see ServiceContract in nex.testing.provider_contract. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;
static char *volatile kept; /* or the compiler finds that nobody needs the memory */

static void on_term(int number) {
    (void)number;
    _exit(7);
}

static void say(const char *text) {
    puts(text);
    fflush(stdout);
}

/* A grandchild that has lost its parent, in a session of its own or not. */
static void leave(int own_session) {
    int ends[2];
    if (pipe(ends) != 0) exit(98);
    if (fork() == 0) {
        if (own_session) setsid();
        pid_t pid = fork();
        if (pid == 0) {
            signal(SIGTERM, SIG_IGN);
            for (;;) pause();
        }
        if (write(ends[1], &pid, sizeof pid) != sizeof pid) _exit(1);
        _exit(0);
    }
    pid_t pid;
    if (read(ends[0], &pid, sizeof pid) != sizeof pid) exit(98);
    printf("left %d\n", (int)pid);
}

/* One request to the host services, and what they answer. */
static int ask_host(const char *method, const char *target, const char *body) {
    const char *path = getenv("NEX_HOST_SERVICES");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[65536];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (path == NULL || strlen(path) >= sizeof address.sun_path) return 3;
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        fprintf(stderr, "cannot connect to %s: %s\n", path, strerror(errno));
        return 4;
    }
    int size = snprintf(text, sizeof text,
                        "%s %s HTTP/1.1\r\nHost: nex\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s", method,
                        target, strlen(body), body);
    if (write(fd, text, (size_t)size) != size) return 5;
    ssize_t n;
    while ((n = read(fd, text, sizeof text)) > 0) fwrite(text, 1, (size_t)n, stdout);
    putchar('\n');
    fflush(stdout);
    close(fd);
    return n == 0 ? 0 : 6;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "exit") == 0) return atoi(argv[2]);
    if (strcmp(what, "abort") == 0) abort();
    if (strcmp(what, "host") == 0) return ask_host(argv[2], argv[3], argc > 4 ? argv[4] : "");
    if (strcmp(what, "print") == 0) {
        for (int n = 2; n < argc; n++) printf("%s\n", argv[n]);
        for (int n = 2; n < argc; n++) fprintf(stderr, "%s\r\n", argv[n]);
    } else if (strcmp(what, "line") == 0) {
        for (int n = atoi(argv[2]); n > 0; n--) putchar('x');
    } else if (strcmp(what, "variable") == 0) {
        const char *value = getenv(argv[2]);
        say(value ? value : "");
    } else if (strcmp(what, "variables") == 0) {
        for (char **pair = environ; *pair; pair++) say(*pair);
    } else if (strcmp(what, "folder") == 0) {
        char path[4096];
        say(getcwd(path, sizeof path));
    } else if (strcmp(what, "allocate") == 0) {
        for (;;) {
            char *block = malloc(1 << 20);
            if (!block) return 5;
            memset(kept = block, 1, 1 << 20);
        }
    } else if (strcmp(what, "wait") == 0) {
        signal(SIGTERM, on_term);
        say("ready");
        for (;;) pause();
    } else if (strcmp(what, "stubborn") == 0) {
        signal(SIGTERM, SIG_IGN);
        say("ready");
        for (;;) pause();
    } else if (strcmp(what, "daemon") == 0) {
        leave(0);
        leave(1);
        say("ready");
        if (strcmp(argv[2], "stay") == 0) pause();
    }
    return 0;
}
