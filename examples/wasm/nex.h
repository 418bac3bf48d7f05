/* The host services of Nex for WebAssembly functions in C: key-value and object stores, messages, the web.
 *
 *     nex_status status = nex_kv_get(NULL, "greeting", 0);
 *     if (status == 0) size = nex_result_read(buffer, sizeof buffer);
 *
 * Every call waits for its answer and returns 0, or the code of what went wrong (NEX_NOT_FOUND, ...), which
 * nex_error_message tells in words. What a call gives is the result, which lasts until the next call. Texts end with
 * NUL; NULL is the empty text. A bucket is a name that the deploy bound; NULL is the workload's own.
 *
 * Build it with any compiler for wasm32-wasi. The functions below are those of docs/reference/wasm-abi.md. */
#ifndef NEX_H
#define NEX_H

#include <stdint.h>
#include <string.h>

typedef int32_t nex_status;

enum {
    NEX_OK = 0,
    NEX_INVALID = 400,
    NEX_DENIED = 403,
    NEX_NOT_FOUND = 404, /* or there is no such service here: nex_error_name says "disabled" */
    NEX_CONFLICT = 409,
    NEX_TOO_LARGE = 413,
    NEX_TOO_MANY = 429,
    NEX_FAILED = 500,
    NEX_UNAVAILABLE = 503,
    NEX_TIMEOUT = 504
};

#define NEX_IMPORT(function) __attribute__((import_module("nex"), import_name(#function))) extern
#define NEX_TEXT const char *, uint32_t
#define NEX_DATA const void *, uint32_t
#define NEX_SPACE void *, uint32_t

NEX_IMPORT(kv_get) nex_status nex__kv_get(NEX_TEXT, NEX_TEXT, int64_t);
NEX_IMPORT(kv_set) nex_status nex__kv_set(NEX_TEXT, NEX_TEXT, NEX_DATA, int64_t);
NEX_IMPORT(kv_create) nex_status nex__kv_create(NEX_TEXT, NEX_TEXT, NEX_DATA, int64_t);
NEX_IMPORT(kv_update) nex_status nex__kv_update(NEX_TEXT, NEX_TEXT, NEX_DATA, int64_t, int64_t);
NEX_IMPORT(kv_delete) nex_status nex__kv_delete(NEX_TEXT, NEX_TEXT, int64_t, int32_t);
NEX_IMPORT(kv_keys) nex_status nex__kv_keys(NEX_TEXT, NEX_TEXT, NEX_TEXT, int64_t);
NEX_IMPORT(kv_history) nex_status nex__kv_history(NEX_TEXT, NEX_TEXT);
NEX_IMPORT(kv_watch) nex_status nex__kv_watch(NEX_TEXT, NEX_TEXT, int32_t);
NEX_IMPORT(object_get) nex_status nex__object_get(NEX_TEXT, NEX_TEXT);
NEX_IMPORT(object_put) nex_status nex__object_put(NEX_TEXT, NEX_TEXT, NEX_DATA, int32_t);
NEX_IMPORT(object_info) nex_status nex__object_info(NEX_TEXT, NEX_TEXT);
NEX_IMPORT(object_delete) nex_status nex__object_delete(NEX_TEXT, NEX_TEXT);
NEX_IMPORT(object_list) nex_status nex__object_list(NEX_TEXT, NEX_TEXT, int64_t);
NEX_IMPORT(publish) nex_status nex__publish(NEX_TEXT, NEX_DATA);
NEX_IMPORT(request) nex_status nex__request(NEX_TEXT, NEX_DATA, int64_t);
NEX_IMPORT(request_many) nex_status nex__request_many(NEX_TEXT, NEX_DATA, int64_t, int64_t, int64_t);
NEX_IMPORT(http_fetch) nex_status nex__http_fetch(NEX_TEXT, NEX_TEXT, NEX_DATA, int64_t, int32_t, int32_t);
NEX_IMPORT(header) nex_status nex__header(NEX_TEXT, NEX_TEXT);
NEX_IMPORT(result_number) int64_t nex__result_number(NEX_TEXT);
NEX_IMPORT(result_text) int32_t nex__result_text(NEX_TEXT, NEX_SPACE);
NEX_IMPORT(result_header) int32_t nex__result_header(NEX_TEXT, NEX_SPACE);
NEX_IMPORT(error_name) int32_t nex__error_name(NEX_SPACE);
NEX_IMPORT(error_message) int32_t nex__error_message(NEX_SPACE);
NEX_IMPORT(message_header) int32_t nex__message_header(NEX_TEXT, NEX_SPACE);
NEX_IMPORT(reply_header) nex_status nex__reply_header(NEX_TEXT, NEX_TEXT);

#define NEX_OF(text) (text), ((text) ? (uint32_t)strlen(text) : 0)

/* ---- Key-value. A revision of 0 is the latest; a ttl_ms of 0 is for ever. */

/* Result: the value; number "revision". */
static inline nex_status nex_kv_get(const char *bucket, const char *key, int64_t revision) {
    return nex__kv_get(NEX_OF(bucket), NEX_OF(key), revision);
}

/* Result: number "revision". */
static inline nex_status nex_kv_set(const char *bucket, const char *key, const void *value, uint32_t size,
                                    int64_t ttl_ms) {
    return nex__kv_set(NEX_OF(bucket), NEX_OF(key), value, size, ttl_ms);
}

/* NEX_CONFLICT if the key has a value. */
static inline nex_status nex_kv_create(const char *bucket, const char *key, const void *value, uint32_t size,
                                       int64_t ttl_ms) {
    return nex__kv_create(NEX_OF(bucket), NEX_OF(key), value, size, ttl_ms);
}

/* NEX_CONFLICT unless `revision` is the key's latest. */
static inline nex_status nex_kv_update(const char *bucket, const char *key, const void *value, uint32_t size,
                                       int64_t revision, int64_t ttl_ms) {
    return nex__kv_update(NEX_OF(bucket), NEX_OF(key), value, size, revision, ttl_ms);
}

/* With `purge`, the key's history goes, too. */
static inline nex_status nex_kv_delete(const char *bucket, const char *key, int64_t revision, int purge) {
    return nex__kv_delete(NEX_OF(bucket), NEX_OF(key), revision, purge);
}

/* A list, in order: each entry is a key. Text "after": empty, or where to go on. A limit of 0 is the node's. */
static inline nex_status nex_kv_keys(const char *bucket, const char *filter, const char *after, int64_t limit) {
    return nex__kv_keys(NEX_OF(bucket), NEX_OF(filter), NEX_OF(after), limit);
}

/* A list, oldest first: each entry is a value; number "revision", texts "operation" and "created". */
static inline nex_status nex_kv_history(const char *bucket, const char *key) {
    return nex__kv_history(NEX_OF(bucket), NEX_OF(key));
}

/* A stream without end: each piece that nex_stream_read gets is a value; texts "key", "operation", "created". */
static inline nex_status nex_kv_watch(const char *bucket, const char *filter, int updates) {
    return nex__kv_watch(NEX_OF(bucket), NEX_OF(filter), updates);
}

/* ---- Objects. Their information: texts "name", "digest", ..., number "size". */

/* Result: the object, of any size: read until nothing comes. */
static inline nex_status nex_object_get(const char *bucket, const char *name) {
    return nex__object_get(NEX_OF(bucket), NEX_OF(name));
}

static inline nex_status nex_object_put(const char *bucket, const char *name, const void *data, uint32_t size) {
    return nex__object_put(NEX_OF(bucket), NEX_OF(name), data, size, 0);
}

/* The same in pieces: nex_result_stream() is what to write them to. */
static inline nex_status nex_object_put_stream(const char *bucket, const char *name) {
    return nex__object_put(NEX_OF(bucket), NEX_OF(name), NULL, 0, 1);
}

static inline nex_status nex_object_info(const char *bucket, const char *name) {
    return nex__object_info(NEX_OF(bucket), NEX_OF(name));
}

static inline nex_status nex_object_delete(const char *bucket, const char *name) {
    return nex__object_delete(NEX_OF(bucket), NEX_OF(name));
}

/* A list, by name: each entry is a name, with the object's information. Text "after": empty, or where to go on. */
static inline nex_status nex_object_list(const char *bucket, const char *after, int64_t limit) {
    return nex__object_list(NEX_OF(bucket), NEX_OF(after), limit);
}

/* ---- Messages. A timeout_ms of 0 is the node's default. */

/* A header (for objects: metadata) of the next call that sends some. */
static inline nex_status nex_header(const char *name, const char *value) {
    return nex__header(NEX_OF(name), NEX_OF(value));
}

static inline nex_status nex_publish(const char *subject, const void *data, uint32_t size) {
    return nex__publish(NEX_OF(subject), data, size);
}

/* Result: the reply, with its headers. */
static inline nex_status nex_request(const char *subject, const void *data, uint32_t size, int64_t timeout_ms) {
    return nex__request(NEX_OF(subject), data, size, timeout_ms);
}

/* A list of replies; it ends after timeout_ms, with `most` of them, or when none has come for stall_ms. */
static inline nex_status nex_request_many(const char *subject, const void *data, uint32_t size, int64_t timeout_ms,
                                          int64_t stall_ms, int64_t most) {
    return nex__request_many(NEX_OF(subject), data, size, timeout_ms, stall_ms, most);
}

/* ---- The web. */

/* Result: the body, of any size, with its headers; number "status", text "url". Redirects are followed. */
static inline nex_status nex_http_fetch(const char *verb, const char *url, const void *body, uint32_t size,
                                        int64_t timeout_ms) {
    return nex__http_fetch(NEX_OF(verb), NEX_OF(url), body, size, timeout_ms, 1, 0);
}

/* ---- Streams. */

/* The next piece is the result; nex_result_stream() is 0 if it was the last. NEX_TIMEOUT: there may yet be more. */
NEX_IMPORT(stream_read) nex_status nex_stream_read(int64_t stream, int64_t timeout_ms);
NEX_IMPORT(stream_write) nex_status nex_stream_write(int64_t stream, const void *data, uint32_t size);
/* The last piece, perhaps empty; the result is that of the call that began the stream. */
NEX_IMPORT(stream_end) nex_status nex_stream_end(int64_t stream, const void *data, uint32_t size);
/* Give it up. What was written is thrown away. */
NEX_IMPORT(stream_close) nex_status nex_stream_close(int64_t stream);

/* ---- The result of the last call. */

/* How many bytes of this piece are left to read. */
NEX_IMPORT(result_size) int32_t nex_result_size(void);
/* The next bytes, at most `size`; 0 at the end, -1 if the rest cannot be had. */
NEX_IMPORT(result_read) int32_t nex_result_read(void *into, uint32_t size);
/* Go to the next entry of a list, first of all to the first; 0 if there is none. */
NEX_IMPORT(result_next) int32_t nex_result_next(void);
/* Where the rest is, or what is to be written to; 0 if this is all. The stream is the caller's from now on. */
NEX_IMPORT(result_stream) int64_t nex_result_stream(void);

/* A number that came with it; -1 if there is none of that name. */
static inline int64_t nex_result_number(const char *name) { return nex__result_number(NEX_OF(name)); }

/* These fill `into` with a text and NUL, as far as there is space; they return the size of the whole text, -1 if there
 * is none. */
#define NEX_TEXT_INTO(call)                                                                                            \
    if (size > 0) memset(into, 0, size);                                                                               \
    return call

/* A text that came with it, anything else as JSON; without a name, all that came with it as JSON. */
static inline int32_t nex_result_text(const char *name, char *into, uint32_t size) {
    NEX_TEXT_INTO(nex__result_text(NEX_OF(name), into, size > 0 ? size - 1 : 0));
}

static inline int32_t nex_result_header(const char *name, char *into, uint32_t size) {
    NEX_TEXT_INTO(nex__result_header(NEX_OF(name), into, size > 0 ? size - 1 : 0));
}

/* Of the last call that failed: "not_found", "denied", ... */
static inline int32_t nex_error_name(char *into, uint32_t size) {
    NEX_TEXT_INTO(nex__error_name(into, size > 0 ? size - 1 : 0));
}

static inline int32_t nex_error_message(char *into, uint32_t size) {
    NEX_TEXT_INTO(nex__error_message(into, size > 0 ? size - 1 : 0));
}

/* ---- The message that we serve, and its reply. */

static inline int32_t nex_message_header(const char *name, char *into, uint32_t size) {
    NEX_TEXT_INTO(nex__message_header(NEX_OF(name), into, size > 0 ? size - 1 : 0));
}

static inline nex_status nex_reply_header(const char *name, const char *value) {
    return nex__reply_header(NEX_OF(name), NEX_OF(value));
}

#endif
