"""The host calls of one engine worker, on their way to the host and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, refusal
from nex.providers.base import HostCall
from nex.providers.frames import ASIDE, Frame, FrameError, Kind, encode
from nex.tasks import TaskOwner

__all__ = ["HostLink"]

_MOST = 64
_MOST_REFUSED = 1024
_UNREAD_BYTES = 32 * 1024 * 1024

_DISABLED = refusal("disabled", "there are no host services here")
_TOO_MANY = refusal("too_many", f"more than {_MOST} host calls at once")
_TOO_LARGE = refusal("too_large", f"a host call has at most {HEAD_BYTES} bytes of head and {PIECE_BYTES} of body")
_FAILED = refusal("failed", "the host call could not be made")


class HostLink:
    """Passes a worker's HOST_CALLs to ``host``, at most 64 at once, and sends it the HOST_ANSWERs.

    ``send`` and ``send_aside`` send a frame to the worker, and tell how many bytes it has not read.
    """

    def __init__(
        self,
        host: HostCall | None,
        tasks: TaskOwner,
        send: Callable[[bytes], int],
        send_aside: Callable[[bytes], int],
    ) -> None:
        self._host = host
        self._tasks = tasks
        self._send = send
        self._send_aside = send_aside
        self._open: set[asyncio.Task[None]] = set()
        self._refused = 0
        self._unread = 0

    def ask(self, frame: Frame) -> None:
        """Begin a host call, or refuse it at once.

        Raises:
            FrameError: the worker floods us: it does not heed refusals, or asks and does not read.
        """
        if self._host is None:
            self._refuse(frame, _DISABLED)
        elif len(self._open) >= _MOST:
            self._refuse(frame, _TOO_MANY)
        elif len(frame.head) > HEAD_BYTES or len(frame.body) > PIECE_BYTES:
            self._refuse(frame, _TOO_LARGE)
        else:
            self._refused = 0
            task = self._tasks.start(self._pass_on(self._host, frame), name="hostcall")
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        if self._unread > _UNREAD_BYTES:
            raise FrameError("it makes host calls and does not read the answers")

    def end(self) -> None:
        """Give up what has not been answered."""
        for task in self._open:
            task.cancel()
        self._open.clear()
        self._refused = 0

    def _refuse(self, frame: Frame, answer: bytes) -> None:
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            raise FrameError("it makes host calls and does not heed that they are refused")
        self._answer(frame, answer, b"")

    async def _pass_on(self, host: HostCall, frame: Frame) -> None:
        try:
            head, body = await host(frame.head, frame.body)
        except Exception:
            self._answer(frame, _FAILED, b"")
            raise
        self._answer(frame, head, body)

    def _answer(self, frame: Frame, head: bytes, body: bytes) -> None:
        send = self._send if frame.id < ASIDE else self._send_aside
        self._unread = send(encode(Kind.HOST_ANSWER, frame.id, head, body))
