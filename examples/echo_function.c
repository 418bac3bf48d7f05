/* A function in WebAssembly: the message comes on standard input, the reply is what is written to standard output,
 * argv[1] is the subject, standard error is the workload's log. Build it with any compiler for wasm32-wasi. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int write_all(const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(STDOUT_FILENO, data, size);
        if (n <= 0) return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

int main(int argc, char **argv) {
    static char buffer[65536];
    ssize_t n;
    while ((n = read(STDIN_FILENO, buffer, sizeof buffer)) > 0)
        if (write_all(buffer, (size_t)n) != 0) return 1;
    if (n < 0 || argc < 2) {
        fprintf(stderr, "no payload or no subject\n");
        return 1;
    }
    return write_all(argv[1], strlen(argv[1])) == 0 ? 0 : 1;
}
