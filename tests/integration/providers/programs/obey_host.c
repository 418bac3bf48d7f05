/* Makes the host calls that its payload asks for, one to a line: a verb and its arguments, between spaces. Of each it
 * prints the result, or the code and the name of the error and its message, on a line. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "nex.h"

static char data[1 << 20], text[4096];

static void print_result(void) {
    int32_t n;
    while ((n = nex_result_read(data, 1000)) > 0) fwrite(data, 1, (size_t)n, stdout);
    if (n < 0) {
        nex_error_name(text, sizeof text);
        printf("!%s", text);
    }
}

static void print_list(const char *number, const char *name) {
    while (nex_result_next()) {
        print_result();
        if (number) printf("=%" PRId64, nex_result_number(number));
        if (name && nex_result_text(name, text, sizeof text) >= 0) printf(":%s", text);
        putchar(',');
    }
    if (nex_result_text("after", text, sizeof text) > 0) printf("after %s", text);
}

static void pattern(char *into, uint32_t size) {
    for (uint32_t n = 0; n < size; n++) into[n] = (char)('a' + n % 23);
}

/* Reads one object and writes another at the same time. */
static nex_status copy(const char *from, const char *to) {
    nex_status status = nex_object_put_stream(NULL, to);
    if (status != NEX_OK) return status;
    int64_t out = nex_result_stream();
    if ((status = nex_object_get(NULL, from)) != NEX_OK) return status;
    int64_t in = nex_result_stream();
    for (;;) {
        int32_t size = nex_result_read(data, sizeof data);
        if (in == 0) return nex_stream_end(out, data, (uint32_t)size);
        if ((status = nex_stream_write(out, data, (uint32_t)size)) != NEX_OK) return status;
        if ((status = nex_stream_read(in, 0)) != NEX_OK) return status;
        in = nex_result_stream();
    }
}

static void obey(char *line) {
    char *words[4] = {"", "", "", ""}, *rest = line;
    for (int n = 0; n < 4 && (words[n] = strsep(&rest, " ")) != NULL; n++)
        ;
    for (int n = 0; n < 4; n++)
        if (words[n] == NULL) words[n] = "";
    const char *verb = words[0], *a = words[1], *b = words[2], *c = words[3];
    uint32_t size = (uint32_t)strlen(b);
    nex_status status = NEX_OK;
    if (strcmp(verb, "get") == 0) {
        if ((status = nex_kv_get(c, a, atoll(b))) == NEX_OK) {
            printf("%" PRId64 " %d ", nex_result_number("revision"), nex_result_size());
            print_result();
        }
    } else if (strcmp(verb, "set") == 0) {
        if ((status = nex_kv_set(NULL, a, b, size, atoll(c))) == NEX_OK)
            printf("%" PRId64, nex_result_number("revision"));
    } else if (strcmp(verb, "create") == 0) {
        status = nex_kv_create(NULL, a, b, size, 0);
    } else if (strcmp(verb, "update") == 0) {
        status = nex_kv_update(NULL, a, b, size, atoll(c), 0);
    } else if (strcmp(verb, "delete") == 0) {
        status = nex_kv_delete(NULL, a, 0, 1);
    } else if (strcmp(verb, "keys") == 0) {
        if ((status = nex_kv_keys(NULL, NULL, a, atoll(b))) == NEX_OK) print_list(NULL, NULL);
    } else if (strcmp(verb, "history") == 0) {
        if ((status = nex_kv_history(NULL, a)) == NEX_OK) print_list("revision", "operation");
    } else if (strcmp(verb, "watch") == 0) {
        status = nex_kv_watch(NULL, a, 0);
        int64_t stream = nex_result_stream();
        if (status == NEX_OK && (status = nex_stream_read(stream, 5000)) == NEX_OK) {
            nex_result_text("key", text, sizeof text);
            printf("%s %" PRId64 " ", text, nex_result_number("revision"));
            print_result();
            status = nex_stream_close(stream);
        }
    } else if (strcmp(verb, "put") == 0) {
        size = (uint32_t)atol(b);
        pattern(data, size);
        if (*c) nex_header("Kind", c);
        if ((status = nex_object_put(NULL, a, data, size)) == NEX_OK) {
            nex_result_text(NULL, text, sizeof text);
            printf("%" PRId64 " %s", nex_result_number("size"), text);
        }
    } else if (strcmp(verb, "object") == 0) {
        if ((status = nex_object_get(NULL, a)) == NEX_OK) print_result();
    } else if (strcmp(verb, "part") == 0) { /* some of an object: the rest is not wanted */
        if ((status = nex_object_get(NULL, a)) == NEX_OK) fwrite(data, 1, (size_t)nex_result_read(data, 3), stdout);
    } else if (strcmp(verb, "info") == 0) {
        if ((status = nex_object_info(NULL, a)) == NEX_OK) printf("%" PRId64, nex_result_number("size"));
    } else if (strcmp(verb, "remove") == 0) {
        status = nex_object_delete(NULL, a);
    } else if (strcmp(verb, "objects") == 0) {
        if ((status = nex_object_list(NULL, NULL, 0)) == NEX_OK) print_list("size", "name");
    } else if (strcmp(verb, "copy") == 0) {
        if ((status = copy(a, b)) == NEX_OK) printf("%" PRId64, nex_result_number("size"));
    } else if (strcmp(verb, "leave") == 0) { /* a stream that nobody ends */
        status = nex_object_put_stream(NULL, a);
    } else if (strcmp(verb, "publish") == 0) {
        if (*c) status = nex_header(c, "yes");
        if (status == NEX_OK) status = nex_publish(a, b, size);
    } else if (strcmp(verb, "request") == 0) {
        nex_header("Ask", "so");
        if ((status = nex_request(a, b, size, 50)) == NEX_OK) {
            print_result();
            nex_result_header("seen", text, sizeof text);
            printf(" %s", text);
            printf(" %d", nex_result_header("none", text, sizeof text));
        }
    } else if (strcmp(verb, "many") == 0) {
        if ((status = nex_request_many(a, b, size, 100, 20, atoll(c))) == NEX_OK) print_list("size", "headers");
    } else if (strcmp(verb, "fetch") == 0) {
        nex_header("Accept", "a/b");
        if ((status = nex_http_fetch("POST", a, b, size, 0)) == NEX_OK) {
            printf("%" PRId64 " ", nex_result_number("status"));
            print_result();
            nex_result_header("ACCEPT", text, sizeof text);
            printf(" %s", text);
        }
    } else if (strcmp(verb, "header") == 0) {
        printf("%d", nex_message_header(a, text, sizeof text));
        printf(" %s", text);
    } else if (strcmp(verb, "short") == 0) { /* less space than the text needs */
        char few[4];
        printf("%d", nex_message_header(a, few, sizeof few));
        printf(" %s", few);
    } else if (strcmp(verb, "reply") == 0) {
        status = nex_reply_header(a, b);
    } else if (strcmp(verb, "large") == 0) {
        status = nex_stream_write(1, data, sizeof data);
    } else if (strcmp(verb, "broken") == 0) {
        status = nex_kv_get(NULL, "\xff", 0);
    } else if (strcmp(verb, "trap") == 0) {
        __builtin_trap();
    } else if (strcmp(verb, "grow") == 0) { /* the memory moves, or not: addresses stay good */
        char *block = malloc(8 << 20);
        memcpy(block, a, strlen(a));
        status = nex_kv_get(NULL, "k", 0);
        printf("%d", nex_result_read(block + (4 << 20), 100));
    } else {
        printf("? %s", verb);
    }
    if (status != NEX_OK) {
        nex_error_name(text, sizeof text);
        printf("%d %s ", status, text);
        nex_error_message(text, sizeof text);
        fputs(text, stdout);
    }
    putchar('\n');
}

int main(void) {
    static char payload[65536];
    char *rest = payload, *line;
    payload[fread(payload, 1, sizeof payload - 1, stdin)] = '\0';
    while ((line = strsep(&rest, "\n")) != NULL)
        if (*line) obey(line);
    return 0;
}
