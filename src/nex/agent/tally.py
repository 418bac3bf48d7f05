"""Counts the calls on one trigger and reports them at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nex.protocol.agent import CallReport

__all__ = ["Tally"]

_EVERY_S = 1.0
_FAILURES = 5
_TEXT_CHARS = 300


class Tally:
    """What happened on ``trigger`` since the last report, which goes encoded to ``send``."""

    __slots__ = ("_elapsed_ns", "_failed", "_failures", "_send", "_succeeded", "_timer", "_trigger")

    def __init__(self, trigger: str, send: Callable[[bytes], None]) -> None:
        self._trigger = trigger
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self._clear()

    def _clear(self) -> None:
        self._succeeded = self._elapsed_ns = self._failed = 0
        self._failures: list[str] = []

    def succeeded(self, elapsed_ns: int) -> None:
        """One call was answered."""
        self._succeeded += 1
        self._elapsed_ns += elapsed_ns
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self.flush)

    def failed(self, text: str) -> None:
        """One call failed; ``text`` is safe to show."""
        self._failed += 1
        if len(self._failures) < _FAILURES:
            self._failures.append(text[:_TEXT_CHARS])
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self.flush)

    def flush(self) -> None:
        """Report now what has not been reported."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._succeeded or self._failed:
            report = CallReport(
                trigger=self._trigger,
                succeeded=self._succeeded,
                elapsed_ns=self._elapsed_ns,
                failed=self._failed,
                failures=tuple(self._failures),
            )
            self._clear()
            self._send(report.encode())
