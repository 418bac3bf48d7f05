/* Counts the messages on each subject in the workload's key-value store, and answers how many there were.
 *
 * Copies may count at the same time: an update of a revision that is no longer the latest is a conflict, and is tried
 * again. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "nex.h"

static int fail(const char *what) {
    char message[256];
    nex_error_message(message, sizeof message);
    fprintf(stderr, "%s: %s\n", what, message);
    return 1;
}

int main(int argc, char **argv) {
    const char *key = argc > 1 ? argv[1] : "";
    char text[32];
    for (;;) {
        uint64_t count = 0;
        int64_t revision = 0;
        nex_status status = nex_kv_get(NULL, key, 0);
        if (status == NEX_OK) {
            int32_t size = nex_result_read(text, sizeof text - 1);
            if (size < 0) return fail("read");
            text[size] = '\0';
            count = strtoull(text, NULL, 10);
            revision = nex_result_number("revision");
        } else if (status != NEX_NOT_FOUND) {
            return fail("get");
        }
        uint32_t size = (uint32_t)snprintf(text, sizeof text, "%" PRIu64, count + 1);
        status = revision > 0 ? nex_kv_update(NULL, key, text, size, revision, 0)
                              : nex_kv_create(NULL, key, text, size, 0);
        if (status == NEX_OK) break;
        if (status != NEX_CONFLICT) return fail("update");
    }
    nex_reply_header("Content-Type", "text/plain");
    fputs(text, stdout);
    return 0;
}
