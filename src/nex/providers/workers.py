"""A pool of engine processes for one function: one call at a time in each, cut off by KILL, replaced at once.

The pool starts with one worker, grows when calls wait, up to ``limits.parallel``, and lets go of those that were of
no use for a while. What user code did to a worker that was killed cannot reach the next call.

When every worker is at work and calls are short, a few more are sent ahead to each, so that it need not wait for us
between two of them; that halves the cost of a call. As many as take `_AHEAD_S` at the pace of the latest calls: those
are what one call that is suddenly slow can hold up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import attrgetter

from nex.errors import CallError, CallFailed, CallOverloaded, StartError, WorkloadError
from nex.protocol.agent import Limits
from nex.providers.base import HostCall, Log
from nex.providers.frames import Frame, Kind
from nex.providers.texts import log_text, safe_text
from nex.providers.worker import Job, Launched, Waiter, Worker
from nex.tasks import TaskOwner

__all__ = ["WorkerPool"]

_SHRINK_S = 10.0
_AHEAD_S = 0.002
_MOST_AHEAD = 8
_MOST_AHEAD_ALONE = 32  # with a single worker, whom else could they wait for?
_PACE_WEIGHT = 1 / 16
_backlog = attrgetter("backlog")


class WorkerPool:
    """The workers of one function and the calls that wait for them.

    Args:
        launch: starts a process that speaks frames over a socket, and returns it with our end.
        load: makes head and body of the LOAD frame; called once, while the first process is starting.
        limits: those of the function.
        log: where its output goes.
        host: who answers its host calls.
    """

    def __init__(
        self,
        launch: Callable[[], Launched],
        load: Callable[[], tuple[bytes, bytes]],
        *,
        limits: Limits,
        log: Log,
        host: HostCall | None = None,
    ) -> None:
        self.limits = limits
        self.log = log
        self.host = host
        self.tasks = TaskOwner("workers", lambda name, error: log("ERROR", f"{name}: {error!r}"))
        self.asking = TaskOwner("hostcalls", lambda name, error: log("ERROR", f"{name}: {error!r}"))
        self._launch = launch
        self._load = load
        self._loading: tuple[bytes, bytes] | None = None
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._spare = 0
        self.pace_s = _AHEAD_S
        """How long one of the latest calls took."""
        self._most_ahead = _MOST_AHEAD if limits.parallel > 1 else _MOST_AHEAD_ALONE
        self._waiting: deque[Job] = deque()
        self._shrinking: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the workers there are now."""
        return tuple(worker.pid for worker in self._workers)

    async def start(self) -> None:
        """Start the first worker and load the function into it.

        Raises:
            StartError: it cannot be loaded; the text says why.
        """
        self._loop = asyncio.get_running_loop()
        frame = await self._grow()
        if frame.kind == Kind.FAILED:
            raise StartError(safe_text(frame.head))

    def call(self, head: bytes, body: bytes) -> asyncio.Future[Frame]:
        """As `begin`; the future may fail with a `CallError`."""
        done: asyncio.Future[Frame] = self._loop.create_future()
        self.begin(head, body, done)
        return done

    def begin(self, head: bytes, body: bytes, done: Waiter) -> None:
        """Run the function once, now or when a worker is free.

        Raises:
            CallOverloaded: too many calls wait already.
            CallFailed: the pool has been stopped.
        """
        if self._drained is not None:
            raise CallFailed("the function has been stopped")
        job = Job(Kind.CALL, head, body, done)
        if self._idle:
            self._idle.pop().begin(job, self.limits.timeout_s)
            self._spare = min(self._spare, len(self._idle))
            return
        if len(self._waiting) >= self.limits.queue:
            raise CallOverloaded(len(self._waiting))
        self._waiting.append(job)
        workers = self._workers
        if len(workers) < self.limits.parallel:
            if sum(not worker.loaded for worker in workers) < len(self._waiting):
                self._replace()
        elif len(self._waiting) == 1 and all(worker.loaded for worker in workers):  # else none has room
            self._feed(min(workers, key=_backlog))

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, finish those there are within ``grace_s`` seconds, end every worker."""
        if self._drained is None:
            self._drained = asyncio.Event()
        self._check_drained()
        try:
            async with asyncio.timeout(grace_s):
                await self._drained.wait()
        except TimeoutError:
            pass
        finally:
            self._fail_waiting(CallFailed("the function was stopped"))
            for worker in tuple(self._workers):
                worker.kill(CallFailed("the function was stopped"))
            if self._shrinking is not None:
                self._shrinking.cancel()
            await asyncio.shield(self.tasks.wait())
            await asyncio.shield(self.asking.aclose())

    def on_answers(self, worker: Worker, count: int, took_s: float) -> None:
        """A worker has answered ``count`` calls in ``took_s`` seconds each, or 0 and loaded the function."""
        self.pace_s += (took_s - self.pace_s) * min(count * _PACE_WEIGHT, 1.0)
        self._feed(worker)
        if worker.backlog:
            return
        self._idle.append(worker)
        if self._drained is not None:
            self._check_drained()
        elif self._shrinking is None and len(self._workers) > 1:
            self._spare = len(self._idle)
            self._shrinking = self._loop.call_later(_SHRINK_S, self._shrink)

    def on_unstarted(self, jobs: list[Job]) -> None:
        """A worker died before it came to these calls: they are the next."""
        self._waiting.extendleft(reversed(jobs))
        while self._waiting and self._idle:
            self._feed(self._idle[-1])
            if self._idle[-1].backlog:
                self._idle.pop()
        if self._waiting and not self._workers:
            if self._drained is None:
                self._replace()
            else:
                self._fail_waiting(CallFailed("the function was stopped"))
        self._check_drained()

    def _feed(self, worker: Worker) -> None:
        """Give a loaded worker as many of the waiting calls as it may have."""
        waiting = self._waiting
        if not waiting:
            return
        most = min(self._most_ahead, int(_AHEAD_S / max(self.pace_s, 1e-6))) or 1
        while waiting and worker.backlog < most:
            job = waiting.popleft()
            if not job.done.done():  # else its caller has given up
                worker.begin(job, self.limits.timeout_s)

    def on_lost(self, worker: Worker) -> None:
        """A worker is dead, or as good as dead."""
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if self._drained is not None:
            self._check_drained()
        elif self._waiting or (worker.served and not self._workers):
            # One that died before its first call may die again and again: the next call tries it, not we.
            self._replace()

    def _grow(self) -> asyncio.Future[Frame]:
        try:
            child, sock, *aside = self._launch()
        except OSError as error:
            raise StartError(f"the function's process cannot be started: {error.strerror or error}") from error
        worker = Worker(self, child, sock, *aside)
        self._workers.add(worker)
        done: asyncio.Future[Frame] = self._loop.create_future()
        done.add_done_callback(partial(self._on_load, worker))
        if self._loading is None:
            self._loading = self._load()
        worker.begin(Job(Kind.LOAD, *self._loading, done), self.limits.start_s)
        return done

    def _on_load(self, worker: Worker, done: asyncio.Future[Frame]) -> None:
        if done.cancelled():  # whoever started us gave up, and stops us next
            return
        error = done.exception()
        if error is None:
            frame = done.result()
            if frame.kind == Kind.READY:
                return
            error = StartError(safe_text(frame.head))
            if frame.body:
                log_text(self.log, b"ERROR", frame.body)
            worker.kill(error)
        if not any(other.loaded for other in self._workers):
            self._fail_waiting(CallFailed(f"the function could not be started again: {error}"))

    def _replace(self) -> None:
        try:
            self._grow()
        except WorkloadError as error:
            if not self._workers:
                self._fail_waiting(CallFailed(f"the function could not be started again: {error}"))

    def _fail_waiting(self, error: CallError) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            if not job.done.done():
                job.done.set_exception(error)

    def _check_drained(self) -> None:
        at_work = self._waiting or any(worker.backlog and worker.loaded for worker in self._workers)
        if self._drained is not None and not at_work:
            self._drained.set()

    def _shrink(self) -> None:
        """Let go of the workers that were idle all the time since we last looked, but for one."""
        self._shrinking = None
        for worker in self._idle[: min(self._spare, len(self._workers) - 1)]:
            worker.kill(CallFailed("the function's worker was let go"))
        if len(self._workers) > 1:
            self._spare = len(self._idle)
            self._shrinking = self._loop.call_later(_SHRINK_S, self._shrink)
