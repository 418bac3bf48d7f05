"""One engine process, the call it is at, and those that stand behind it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from nex.errors import CallFailed, CallTimedOut, StartError, WorkloadError
from nex.processes import Child, Exit
from nex.protocol.agent import Limits
from nex.providers.base import HostCall, Log
from nex.providers.frames import Frame, FrameError, FrameReader, Kind, encode, pieces
from nex.providers.hostlink import HostLink
from nex.providers.outlet import Outlet
from nex.providers.texts import log_text
from nex.tasks import TaskOwner

__all__ = ["Job", "Launched", "Owner", "Waiter", "Worker", "connected"]

_READ_BYTES = 256 * 1024
_BUFFER_BYTES = 1024 * 1024  # of a socket, so that a large frame is not many wake-ups; or as much as the system allows
_READS = 8  # one after another, before others have their turn
_BEYOND_RESULT_BYTES = 1024 * 1024  # what a frame may hold beside a result: headers, an error's text, a log entry
_TERM_S = 1.0
_CRASHES = frozenset({signal.SIGTRAP, signal.SIGILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS})
_AFTER_LOAD = frozenset({Kind.READY, Kind.FAILED})
_AFTER_CALL = frozenset({Kind.RESULT, Kind.FAILED, Kind.TOO_LARGE})


Launched = tuple[Child, socket.socket] | tuple[Child, socket.socket, socket.socket]
"""An engine process and the socket over which it speaks frames; then, perhaps, the one where it wants answers aside."""


class Waiter(Protocol):
    """Who waits for the answer to a frame, told once, from the loop; a future is one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, frame: Frame, /) -> None:
        """The answer."""

    def set_exception(self, error: WorkloadError, /) -> None:
        """Why there is none."""


class Job(NamedTuple):
    """A frame for a worker, and who waits for the answer."""

    kind: Kind
    head: bytes
    body: bytes
    done: Waiter


def connected(start: Callable[[socket.socket], Child]) -> tuple[Child, socket.socket]:
    """A process that ``start`` makes with one end of a new pair of sockets, and the other end.

    Raises:
        OSError: it cannot be made.
    """
    ours, theirs = socket.socketpair()
    try:
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        return start(theirs), ours
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


class Owner(Protocol):
    """What a worker needs of its pool."""

    limits: Limits
    log: Log
    tasks: TaskOwner
    host: HostCall | None
    asking: TaskOwner

    def on_answers(self, worker: Worker, count: int, took_s: float) -> None:
        """It has answered ``count`` calls in ``took_s`` seconds each, or 0 and loaded the function; it takes more."""

    def on_lost(self, worker: Worker) -> None:
        """It is dead, or as good as dead."""

    def on_unstarted(self, jobs: list[Job]) -> None:
        """It died before it came to these."""


class Worker:
    """One engine process: it takes frames in turn and sends, for each, any number of LOG frames and one answer.

    Before that answer it may make host calls; what they answer after it is not heard.

    It is killed when it overruns a deadline, breaks the protocol or closes its socket, and is of no use then. As it
    answers in order, and what it had sent is still read afterwards, it is known which frame it was at when it died:
    that one fails, those behind it have not been started.
    """

    def __init__(self, owner: Owner, child: Child, sock: socket.socket, aside: socket.socket | None = None) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._sock = sock
        self._fd = sock.fileno()
        self._reader = FrameReader(owner.limits.result_bytes + _BEYOND_RESULT_BYTES)
        self._aside = aside or sock
        self._out = Outlet(sock)
        self._out_aside = self._out if aside is None else Outlet(aside)
        self._host = HostLink(owner.host, owner.asking, self._out.send, self._out_aside.send)
        self._sequence = 0
        self._jobs: deque[Job] = deque()
        self._timeout_s = 0.0
        self._began = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._loaded = False
        self._dead = False
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
    def backlog(self) -> int:
        """How many answers are awaited of it."""
        return len(self._jobs)

    @property
    def served(self) -> bool:
        """Whether it has been called."""
        return self._sequence > 1

    def begin(self, job: Job, timeout_s: float) -> None:
        """Send a frame; ``job.done`` gets the answer or the `WorkloadError`. All frames share one time limit."""
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._timeout_s = timeout_s
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._began = now = self._loop.time()
            # One timer serves many calls: when it goes off, it looks at how long the first of them has run.
            if self._alarm is None:
                self._alarm = self._loop.call_at(now + timeout_s, self._check_deadline)
            self._out.send(*pieces(job.kind, sequence, job.head, job.body))
        else:  # it does not wait for this one
            self._out.send_soon(encode(job.kind, sequence, job.head, job.body))

    def kill(self, error: WorkloadError) -> None:
        """End it now; the call it is at fails with ``error``."""
        if not self._dead:
            self._child.signal(signal.SIGKILL)
            self._detach()
            self._owner.tasks.start(self._bury(error), name=f"bury-{self.pid}")

    def _readable(self) -> None:
        # All that there is, up to the end: uvloop calls only once for a socket whose peer died with unread frames.
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READS):
                if self._dead:
                    return
                if not self._read() and not self._dead:  # it has closed its socket, and how it died is the answer
                    self._detach()
                    self._owner.tasks.start(self._bury(None), name=f"bury-{self.pid}")
            self._loop.call_soon(self._readable)

    def _read(self) -> bool:
        """Take what has come, once; False at the end of it."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        answered: list[tuple[Waiter, Frame]] = []
        was_loaded = self._loaded
        try:
            for frame in self._reader.feed(data):
                self._take(frame, answered)
        except FrameError as error:
            self._broken(str(error))
        if answered:
            now = self._loop.time()
            took_s, self._began = (now - self._began) / len(answered), now
            if self._loaded and not self._dead:
                self._owner.on_answers(self, len(answered) if was_loaded else 0, took_s)
                self._out.flush()  # it shall not wait for its next calls while we pass on these answers
        for waiter, frame in answered:
            if not waiter.done():
                waiter.set_result(frame)
        return bool(data)

    def _take(self, frame: Frame, answered: list[tuple[Waiter, Frame]]) -> None:
        if frame.kind == Kind.LOG:
            log_text(self._owner.log, frame.head, frame.body)
            return
        jobs = self._jobs
        if frame.kind == Kind.HOST_CALL and jobs:
            if not self._dead:
                self._host.ask(frame)
            return
        expected = _AFTER_CALL if self._loaded else _AFTER_LOAD
        first = (self._sequence - len(jobs) + 1) & 0xFFFFFFFF
        if not jobs or frame.id != first or frame.kind not in expected:
            raise FrameError(f"nobody waits for kind {frame.kind} with id {frame.id}")
        self._host.end()
        answered.append((jobs.popleft().done, frame))
        if not self._loaded:
            self._loaded = frame.kind == Kind.READY
            self._silence_alarm()

    def _broken(self, what: str) -> None:
        self._owner.log("ERROR", f"the function's worker does not keep to its protocol and is replaced: {what}")
        self.kill(CallFailed("the function broke its worker") if self._loaded else StartError("the worker is broken"))

    def _silence_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _check_deadline(self) -> None:
        self._alarm = None
        if not self._jobs:
            return
        deadline = self._began + self._timeout_s
        if self._loop.time() < deadline:
            self._alarm = self._loop.call_at(deadline, self._check_deadline)
        elif self._loaded:
            self.kill(CallTimedOut(self._owner.limits.timeout_s))
        else:
            self.kill(StartError(f"the function did not load within {self._owner.limits.start_s:g} s"))

    def _detach(self) -> None:
        self._dead = True
        self._loop.remove_reader(self._fd)
        self._out.drop()
        self._out_aside.drop()
        self._silence_alarm()
        self._host.end()
        self._owner.on_lost(self)

    async def _bury(self, error: WorkloadError | None) -> None:
        """Reap it, take the answers it still had sent, fail the call it was at, give back those behind that one."""
        exited = await self._child.stop(_TERM_S)
        with contextlib.suppress(BlockingIOError):  # should something hold the other end open
            while self._read():
                pass
        self._sock.close()
        self._aside.close()
        if self._jobs:
            done = self._jobs.popleft().done
            if not done.done():
                text = self._epitaph(exited)
                done.set_exception(error or (CallFailed(text) if self._loaded else StartError(text)))
        unstarted = [job for job in self._jobs if not job.done.done()]
        self._jobs.clear()
        self._owner.on_unstarted(unstarted)

    def _epitaph(self, exited: Exit) -> str:
        if exited.signal in _CRASHES:
            mebibytes = self._owner.limits.memory_bytes / 2**20
            return f"the function ran out of memory (its limit is {mebibytes:g} MiB) or crashed: {exited}"
        return f"the function ended its process: {exited}"
