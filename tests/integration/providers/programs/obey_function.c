/* Does what its payload says; see FunctionContract in nex.testing.provider_contract. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;
static char *volatile kept; /* or the compiler finds that nobody needs the memory */
static char input[4 << 20];

static const char *after(const char *word) {
    size_t size = strlen(word);
    return strncmp(input, word, size) == 0 ? input + size : NULL;
}

int main(int argc, char **argv) {
    size_t size = fread(input, 1, sizeof input - 1, stdin);
    const char *rest;
    if (argc != 2 || strcmp(argv[0], "nexfunction") != 0) return 99;
    if ((rest = after("echo:"))) {
        fwrite(rest, 1, size - 5, stdout);
    } else if (after("subject")) {
        fputs(argv[1], stdout);
    } else if (after("variables")) {
        for (char **pair = environ; *pair; pair++)
            printf("%s%.*s", pair == environ ? "" : ",", (int)strcspn(*pair, "="), *pair);
    } else if ((rest = after("variable:"))) {
        const char *value = getenv(rest);
        fputs(value ? value : "", stdout);
    } else if ((rest = after("header:"))) {
        char name[256] = "NEX_HEADER_";
        size_t at = strlen(name);
        for (; *rest && at < sizeof name - 1; rest++) name[at++] = isalnum(*rest) ? (char)toupper(*rest) : '_';
        const char *value = getenv(name);
        fputs(value ? value : "", stdout);
    } else if (after("fail")) {
        return 42;
    } else if (after("trap")) {
        __builtin_trap();
    } else if (after("spin")) {
        for (volatile int n = 0;; n++);
    } else if (after("allocate")) {
        for (;;) {
            char *block = malloc(1 << 20);
            if (!block) return 1;
            memset(kept = block, 1, 1 << 20);
        }
    } else if ((rest = after("large:"))) {
        for (long n = atol(rest); n > 0; n--) putchar('x');
    } else if ((rest = after("log:"))) {
        fputs(rest, stderr);
    } else if (after("flood")) {
        for (;;) fprintf(stderr, "%0100000d\n", 7);
    } else if (after("count")) { /* a fresh instance each time: always 1 */
        static int calls;
        printf("%d", ++calls);
    }
    return 0;
}
