/* Misbehaves as its argument says. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* A connection to the host services that never blocks, or -1. */
static int host_services(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NEX_HOST_SERVICES");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || path == NULL) return -1;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Writes the same again and again on 16 connections, reads nothing, and goes on with new ones where they are closed. */
static void pester(const char *text) {
    int fds[16];
    size_t size = strlen(text);
    for (int n = 0; n < 16; n++) fds[n] = host_services();
    for (int times = 0; times < 20000; times++)
        for (int n = 0; n < 16; n++)
            if (fds[n] < 0 || (send(fds[n], text, size, MSG_NOSIGNAL) < 0 && errno != EAGAIN)) {
                if (fds[n] >= 0) close(fds[n]);
                fds[n] = host_services();
            }
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(way, "flood") == 0) {
        for (;;) puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    } else if (strcmp(way, "connections") == 0) {
        for (int n = 0; n < 5000; n++) host_services(); /* and keeps them, as many as it may */
    } else if (strcmp(way, "requests") == 0) {
        pester("GET /kv/none HTTP/1.1\r\nHost: nex\r\n\r\n");
    } else if (strcmp(way, "garbage") == 0) {
        pester("\r\n\x01\xff garbage: that is no request");
    } else if (strcmp(way, "kill") == 0) {
        kill(0, SIGKILL);
    }
    printf("%s done\n", way);
    fflush(stdout);
    for (;;) pause();
}
