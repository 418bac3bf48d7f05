"""One engine process and the call it is at."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Protocol

from nex.errors import CallFailed, CallTimedOut, StartError, WorkloadError
from nex.processes import Child, Exit
from nex.protocol.agent import Limits
from nex.providers.base import Log
from nex.providers.frames import Frame, FrameError, FrameReader, Kind, encode
from nex.providers.texts import log_text
from nex.tasks import TaskOwner

__all__ = ["Owner", "Worker"]

_READ_BYTES = 256 * 1024
_BEYOND_RESULT_BYTES = 1024 * 1024  # what a frame may hold beside a result: headers, an error's text, a log entry
_TERM_S = 1.0
_CRASHES = frozenset({signal.SIGTRAP, signal.SIGILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS})
_AFTER_LOAD = frozenset({Kind.READY, Kind.FAILED})
_AFTER_CALL = frozenset({Kind.RESULT, Kind.FAILED, Kind.TOO_LARGE})


class Owner(Protocol):
    """What a worker needs of its pool."""

    limits: Limits
    log: Log
    tasks: TaskOwner

    def on_idle(self, worker: Worker) -> None:
        """It is ready for a call."""

    def on_lost(self, worker: Worker) -> None:
        """It is dead, or as good as dead."""


class Worker:
    """One engine process: given one frame, it sends any number of LOG frames and one answer.

    It is killed when it overruns a deadline, breaks the protocol or closes its socket, and is of no use then.
    """

    def __init__(self, owner: Owner, child: Child, sock: socket.socket) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._sock = sock
        self._fd = sock.fileno()
        self._reader = FrameReader(owner.limits.result_bytes + _BEYOND_RESULT_BYTES)
        self._unsent: memoryview | None = None
        self._sequence = 0
        self._done: asyncio.Future[Frame] | None = None
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._loaded = False
        self._dead = False
        sock.setblocking(False)
        self._loop.add_reader(self._fd, self._readable)

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._child.pid

    @property
    def loaded(self) -> bool:
        """Whether it has been ready for calls."""
        return self._loaded

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited of it."""
        return self._done is not None

    @property
    def served(self) -> bool:
        """Whether it has been called."""
        return self._sequence > 1

    def begin(self, kind: Kind, head: bytes, body: bytes, done: asyncio.Future[Frame], timeout_s: float) -> None:
        """Send a frame to the idle worker; ``done`` gets the answer or the `WorkloadError`."""
        self._done = done
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        # One timer serves many calls: when it goes off, it looks at the deadline of the call that runs then.
        self._deadline = self._loop.time() + timeout_s
        if self._alarm is None:
            self._alarm = self._loop.call_at(self._deadline, self._check_deadline)
        data = encode(kind, sequence, head, body)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it has died: the reading side tells the rest
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._writable)

    def kill(self, error: WorkloadError) -> None:
        """End it now; what is awaited of it fails with ``error``."""
        if not self._dead:
            self._child.signal(signal.SIGKILL)
            done = self._detach()
            if done is not None and not done.done():
                done.set_exception(error)
            self._owner.tasks.start(self._bury(None), name=f"bury-{self.pid}")

    def _writable(self) -> None:
        if self._unsent is not None:
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self._unsent = None  # it has died: the reading side tells the rest
        if not self._unsent:
            self._unsent = None
            self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended()
            return
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
                if self._dead:
                    return
        except FrameError as error:
            self._broken(str(error))

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.LOG:
            log_text(self._owner.log, frame.head, frame.body)
            return
        done = self._done
        expected = _AFTER_CALL if self._loaded else _AFTER_LOAD
        if done is None or frame.id != self._sequence or frame.kind not in expected:
            self._broken(f"nobody waits for kind {frame.kind} with id {frame.id}")
            return
        self._done = None
        if not self._loaded:
            self._loaded = frame.kind == Kind.READY
            self._silence_alarm()
        if not done.done():
            done.set_result(frame)
        if self._loaded:
            self._owner.on_idle(self)

    def _broken(self, what: str) -> None:
        self._owner.log("ERROR", f"the function's worker does not keep to its protocol and is replaced: {what}")
        self.kill(CallFailed("the function broke its worker") if self._loaded else StartError("the worker is broken"))

    def _silence_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _check_deadline(self) -> None:
        self._alarm = None
        if self._done is None:
            return
        if self._loop.time() < self._deadline:
            self._alarm = self._loop.call_at(self._deadline, self._check_deadline)
        elif self._loaded:
            self.kill(CallTimedOut(self._owner.limits.timeout_s))
        else:
            self.kill(StartError("the function took too long to load"))

    def _ended(self) -> None:
        """It has closed its socket: most likely it is dead already, and how it died is the answer."""
        self._owner.tasks.start(self._bury(self._detach()), name=f"bury-{self.pid}")

    def _detach(self) -> asyncio.Future[Frame] | None:
        self._dead = True
        self._loop.remove_reader(self._fd)
        if self._unsent is not None:
            self._unsent = None
            self._loop.remove_writer(self._fd)
        self._sock.close()
        self._silence_alarm()
        done, self._done = self._done, None
        self._owner.on_lost(self)
        return done

    async def _bury(self, done: asyncio.Future[Frame] | None) -> None:
        exited = await self._child.stop(_TERM_S)
        if done is not None and not done.done():
            text = self._epitaph(exited)
            done.set_exception(CallFailed(text) if self._loaded else StartError(text))

    def _epitaph(self, exited: Exit) -> str:
        if exited.signal in _CRASHES:
            mebibytes = self._owner.limits.memory_bytes / 2**20
            return f"the function ran out of memory (its limit is {mebibytes:g} MiB) or crashed: {exited}"
        return f"the function ended its process: {exited}"
