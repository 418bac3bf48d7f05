"""The workload's output on its way to the node: gathered into batches, bounded in rate and in size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nex.protocol.agent import LogBatch, LogLine

__all__ = ["Output"]

_DELAY_S = 0.05
_BATCH_LINES = 500
_BATCH_BYTES = 64 * 1024  # of text; as JSON it can grow sixfold, and must still fit into a message
_LINE_BYTES = 16 * 1024
_LINES_PER_S = 2000
_BYTES_PER_S = 2 * 1024 * 1024
_LEVELS = frozenset({"DEBUG", "INFO", "WARN", "ERROR"})


class Output:
    """Takes lines and hands encoded batches to ``send``.

    In each second a bounded number of lines and bytes passes; the rest of that second is dropped and counted.
    """

    def __init__(self, send: Callable[[bytes], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._lines: list[LogLine] = []
        self._size = 0
        self._dropped = 0
        self._second = clock()
        self._lines_left = _LINES_PER_S
        self._bytes_left = _BYTES_PER_S
        self._timer: asyncio.TimerHandle | None = None

    def log(self, level: str, line: str) -> None:
        """Take one line; never blocks, never fails."""
        text = line[:_LINE_BYTES]
        admitted = self._admits(len(text))
        if self._lines and (not admitted or self._size >= _BATCH_BYTES or len(self._lines) >= _BATCH_LINES):
            self.flush()  # a batch's count of dropped lines stands before its lines
        if admitted:
            self._lines.append(LogLine(level=level if level in _LEVELS else "INFO", text=text))
            self._size += len(text)
        else:
            self._dropped += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self.flush)

    def _admits(self, size: int) -> bool:
        if (now := self._clock()) - self._second >= 1:
            self._second, self._lines_left, self._bytes_left = now, _LINES_PER_S, _BYTES_PER_S
        if self._lines_left < 1 or self._bytes_left < size:
            self._lines_left = 0  # a shorter line that comes later must not pass where a longer one did not
            return False
        self._lines_left -= 1
        self._bytes_left -= size
        return True

    def flush(self) -> None:
        """Hand over what has been gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines or self._dropped:
            batch = LogBatch(lines=tuple(self._lines), dropped=self._dropped)
            self._lines, self._size, self._dropped = [], 0, 0
            self._send(batch.encode())
