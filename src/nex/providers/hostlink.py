"""The host calls of one engine worker, on their way to the host and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from nex.protocol.hostcalls import HEAD_BYTES, PIECE_BYTES, StreamClose, refusal
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


class _Head(msgspec.Struct):
    stream: int = 0


_decode_head = msgspec.json.Decoder(_Head).decode


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
        self._round = 0
        self._open = 0
        self._refused = 0
        self._unread = 0
        self._streams: set[int] = set()

    def ask(self, frame: Frame) -> None:
        """Begin a host call, or refuse it at once.

        Raises:
            FrameError: the worker floods us: it does not heed refusals, or asks and does not read.
        """
        if self._host is None:
            self._refuse(frame, _DISABLED)
        elif self._open >= _MOST:
            self._refuse(frame, _TOO_MANY)
        elif len(frame.head) > HEAD_BYTES or len(frame.body) > PIECE_BYTES:
            self._refuse(frame, _TOO_LARGE)
        else:
            self._refused = 0
            self._open += 1
            answer = self._host(frame.head, frame.body)
            done = answer if isinstance(answer, asyncio.Future) else self._tasks.start(_wait(answer), name="hostcall")
            done.add_done_callback(partial(self._answered, self._host, frame, self._round))
        if self._unread > _UNREAD_BYTES:
            raise FrameError("it makes host calls and does not read the answers")

    def end(self) -> None:
        """The worker waits for nothing any more: what is asked is asked, the answers are not sent, streams end."""
        self._round += 1
        self._refused = 0
        if self._streams and self._host is not None:
            self._tasks.start(self._close(self._host, tuple(self._streams)), name="close streams")
            self._streams.clear()

    def _refuse(self, frame: Frame, answer: bytes) -> None:
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            raise FrameError("it makes host calls and does not heed that they are refused")
        self._answer(frame, answer, b"")

    def _answered(self, host: HostCall, frame: Frame, asked_in: int, done: asyncio.Future[tuple[bytes, bytes]]) -> None:
        self._open -= 1
        if done.cancelled():
            return
        if done.exception() is not None:  # which whoever owns the task is told
            if asked_in == self._round:
                self._answer(frame, _FAILED, b"")
            return
        head, body = done.result()
        stream = _stream_of(head)
        if asked_in == self._round:
            if self._streams and (used := _stream_of(frame.head)) != stream:
                self._streams.discard(used)
            if stream:
                self._streams.add(stream)
            self._answer(frame, head, body)
        elif stream:
            self._tasks.start(self._close(host, (stream,)), name="close stream")

    async def _close(self, host: HostCall, streams: tuple[int, ...]) -> None:
        for stream in streams:
            await host(StreamClose(stream=stream).encode(), b"")

    def _answer(self, frame: Frame, head: bytes, body: bytes) -> None:
        send = self._send if frame.id < ASIDE else self._send_aside
        self._unread = send(encode(Kind.HOST_ANSWER, frame.id, head, body))


async def _wait(answer: Awaitable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    return await answer


def _stream_of(head: bytes) -> int:
    """The stream that a call or an answer names, or 0."""
    try:
        return _decode_head(head).stream
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
