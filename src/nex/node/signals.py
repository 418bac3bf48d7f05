"""Signals of the daemon: the first TERM, INT or QUIT asks it to stop, the second makes it; HUP is told to others."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from nex.telemetry.logs import Log

__all__ = ["StopSignals"]

_log = Log("node.signals")
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class StopSignals:
    """``gracefully`` is set by the first signal, ``at_once`` by the second."""

    def __init__(self, gracefully: asyncio.Event | None = None, *, on_hangup: Callable[[], None] | None = None) -> None:
        self.gracefully = gracefully or asyncio.Event()
        self.at_once = asyncio.Event()
        self._on_hangup = on_hangup or self._ignore

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals of this process until the end of the block."""
        loop = asyncio.get_running_loop()
        for sig in _STOPS:
            loop.add_signal_handler(sig, self._stop, sig)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for sig in (*_STOPS, signal.SIGHUP):
                loop.remove_signal_handler(sig)

    def _stop(self, sig: signal.Signals) -> None:
        if self.gracefully.is_set():
            _log.warn("stop_at_once", f"{sig.name} again: stopping at once")
            self.at_once.set()
        else:
            _log.info("stop", f"{sig.name}: stopping; once more stops at once")
            self.gracefully.set()

    def _ignore(self) -> None:
        _log.info("hangup_ignored", "HUP: nothing to do; a restart has the configuration read again")
