"""The one place where an error becomes a line and an exit code.

====  ==========================================================
code  meaning
====  ==========================================================
0     done
1     something unexpected failed
2     usage: a flag, an argument, a file or the configuration
3     refused: a node or a server said no
4     not found: node, workload, bucket or object
5     unreachable: no server, or nobody listens
6     timed out
130   interrupted (Ctrl-C)
====  ==========================================================
"""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Iterable
from typing import TextIO

import click

from nex.errors import (
    ClaimsError,
    ConfigError,
    DeadlineError,
    KeyFormatError,
    MachineError,
    NexError,
    NotFoundError,
    RefusedError,
    SealError,
    StartError,
    UnreachableError,
    UsageError,
)

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "exit_code", "report"]

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
_CONSOLE_LINES = 8

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, USAGE),
    (KeyFormatError, USAGE),
    (RefusedError, 3),
    (ClaimsError, 3),
    (SealError, 3),
    (StartError, 3),
    (NotFoundError, 4),
    (UnreachableError, 5),
    (DeadlineError, 6),
    (click.UsageError, USAGE),
    (click.ClickException, USAGE),
    (click.Abort, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
)


def exit_code(error: BaseException) -> int:
    """The exit code that tells this error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def report(error: BaseException, *, stream: TextIO, as_json: bool, debug: bool) -> int:
    """Write one clear line (or one JSON document) about ``error`` to ``stream`` and return the exit code."""
    error = _single(error)
    code = exit_code(error)
    if code == INTERRUPTED:
        return code
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        stream.write(f"{error.format_message()}\n")
        return code
    word, message = _describe(error, debug=debug)
    if as_json:
        data: dict[str, object] = {"code": word, "message": message}
        if isinstance(error, ConfigError):
            data["problems"] = [{"key": p.key, "source": p.source, "text": p.text} for p in error.problems]
        stream.write(json.dumps({"error": data}, ensure_ascii=False) + "\n")
    else:
        stream.write(f"nex: {message}\n")
    if debug:
        stream.writelines(traceback.format_exception(error))
    return code


def _describe(error: BaseException, *, debug: bool) -> tuple[str, str]:
    match error:
        case MachineError() if error.console and not debug:
            return error.code, f"{error.text}; it printed last: {_last(error.console)}"
        case NexError():
            return error.code, str(error)
        case click.exceptions.NoArgsIsHelpError():
            return UsageError.code, "a command is missing"
        case click.UsageError():
            return UsageError.code, _usage_text(error)
        case click.ClickException():
            return UsageError.code, error.format_message().rstrip(".")
        case OSError() if error.errno == errno.ENOSPC:
            return "failed", f"no space left on the device{f' for {error.filename}' if error.filename else ''}"
        case OSError() if error.filename:
            return "failed", f"{error.filename}: {error.strerror}"
    hint = "" if debug else "; see where it came from with --loglevel debug"
    return "failed", f"unexpected {type(error).__name__}: {_one_line(str(error))}{hint}"


def _usage_text(error: click.UsageError) -> str:
    text = _one_line(error.format_message()).rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "nex"
    return f"{text[:1].lower()}{text[1:]}; see {path} --help"


def _last(console: str) -> str:
    """The last lines of a console; if there are several, each by itself below the error."""
    lines = [line for text in console.splitlines() if (line := _one_line(text))][-_CONSOLE_LINES:]
    return lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _single(error: BaseException) -> BaseException:
    """The most telling error of a group: tasks fail together, and one cause is enough for one line."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = tuple(_leaves(error))
    return next((e for e in leaves if isinstance(e, NexError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
