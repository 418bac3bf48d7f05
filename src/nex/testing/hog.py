"""Programs that take more than their share of one thing, for tests of limits. Built by the compiler of the examples."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

__all__ = ["build_hog", "build_hog_function"]

_ROOT = Path(__file__).parents[3]
_SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char *volatile kept; /* or the compiler finds that nobody needs the memory */

static void say(const char *text) {
    puts(text);
    fflush(stdout);
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void take_memory(void) {
    for (;;) {
        char *piece = malloc(1 << 20);
        if (piece == NULL) exit(3);
        memset(piece, 1, 1 << 20);
        kept = piece;
    }
}

static void take_processes(void) {
    for (;;) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (pid == 0) for (;;) pause();
    }
}

static void take_disk(void) {
    char piece[65536];
    memset(piece, 1, sizeof piece);
    int file = open("hog", O_WRONLY | O_CREAT, 0600);
    while (file >= 0 && write(file, piece, sizeof piece) > 0) continue;
}

/* For that many seconds, in two processes; says how much CPU time this one got. */
static void take_cpu(double wanted) {
    fork();
    double end = seconds(CLOCK_MONOTONIC) + wanted;
    while (seconds(CLOCK_MONOTONIC) < end) continue;
    printf("cpu %.3f\n", seconds(CLOCK_PROCESS_CPUTIME_ID));
    fflush(stdout);
}

/* Leaves a process with another's program, in no folder of ours, without a parent, in a session of its own. */
static void leave(void) {
    if (fork() != 0) return;
    setsid();
    pid_t pid = fork();
    if (pid != 0) {
        printf("left %d\n", (int)pid);
        fflush(stdout);
        _exit(0);
    }
    if (chdir("/") == 0) execl("/bin/sleep", "sleep", "600", (char *)0);
    _exit(1);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    say("started");
    if (strcmp(what, "memory") == 0) take_memory();
    if (strcmp(what, "child's memory") == 0 && fork() == 0) take_memory();
    if (strcmp(what, "processes") == 0) take_processes();
    if (strcmp(what, "disk") == 0) take_disk();
    if (strcmp(what, "leave") == 0) leave();
    if (strcmp(what, "cpu") == 0) take_cpu(atof(argv[2]));
    for (;;) pause(); /* whoever took too much is to be ended, not to end */
}
"""


_FUNCTION = r"""
#include <stdlib.h>
#include <string.h>

static char *volatile kept;

int main(void) {
    char *piece;
    while ((piece = malloc(1 << 20)) != NULL) {
        memset(piece, 1, 1 << 20);
        kept = piece;
    }
    return 3;
}
"""


@cache
def build_hog() -> Path:
    """The hog as a static executable. Its first argument says what it takes.

    ``memory``, ``child's memory`` (and stays itself), ``processes``, ``disk``, or ``cpu`` for as many seconds as the
    second argument says; with ``leave``, a process that has nothing to do with it any more is left, and its id said;
    anything else is nothing. It says ``started`` first, and never ends by itself.

    Raises:
        RuntimeError: it cannot be built; the text holds what the compiler printed.
    """
    return _build("hog", _SOURCE, "-target", f"{platform.machine()}-linux-musl", "-static")


@cache
def build_hog_function() -> Path:
    """A WASI command that takes all the memory it can get, and fails when that is not enough.

    Raises:
        RuntimeError: as `build_hog`.
    """
    return _build("hog.wasm", _FUNCTION, "-target", "wasm32-wasi")


def _build(name: str, text: str, *flags: str) -> Path:
    result = _ROOT / "build" / "tests" / f"{sha256(text.encode()).hexdigest()[:12]}-{name}"
    if result.exists():
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    source, part = result.with_suffix(f".{os.getpid()}.c"), result.with_suffix(f".{os.getpid()}")
    source.write_text(text)
    caches = _ROOT / ".cache"
    zig = {"ZIG_GLOBAL_CACHE_DIR": str(caches / "zig"), "ZIG_LOCAL_CACHE_DIR": str(caches / "zig-local")}
    # With the flags of the examples, so that the C library is built once.
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-O2", "-s", *flags, "-o", part, source],
        env={**os.environ, **zig},
        capture_output=True,
        text=True,
        check=False,
    )
    source.unlink()
    if done.returncode != 0:
        raise RuntimeError(f"{name} cannot be built:\n{done.stderr}")
    part.replace(result)
    return result
