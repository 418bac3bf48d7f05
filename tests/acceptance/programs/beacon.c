/* A native service that says what it was given and then stays: all that a machine without a network can show. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void on_term(int number) {
    (void)number;
    static const char text[] = "told to stop\n";
    if (write(1, text, sizeof text - 1) < 0) _exit(1);
    _exit(3);
}

int main(int argc, char **argv) {
    const char *color = getenv("COLOR");
    signal(SIGTERM, on_term);
    printf("beacon %s, %s, uid %s\n", argc > 1 ? argv[1] : "-", color ? color : "colorless", getuid() == 0 ? "0" : "not 0");
    fflush(stdout);
    for (;;) pause();
}
