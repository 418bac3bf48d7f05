"""A worker that was started before there was a function for it, and waits."""

from __future__ import annotations

import socket

from nex.processes import Child
from nex.providers.frames import FrameError, FrameReader, Kind, encode

__all__ = ["Spare"]

_WARM_TIMEOUT_S = 60.0
_ANSWER_BYTES = 4096


class Spare:
    """A process that speaks frames over ``sock``. It is taken or dropped, once."""

    def __init__(self, child: Child, sock: socket.socket) -> None:
        self._child = child
        self._sock = sock

    def warm(self) -> None:
        """Wait until it has done what any function needs. Blocks.

        Raises:
            OSError: it does not answer in time, or with something else.
        """
        self._sock.settimeout(_WARM_TIMEOUT_S)
        self._sock.sendall(encode(Kind.WARM, 0))
        answers = FrameReader(_ANSWER_BYTES)
        try:
            while data := self._sock.recv(_ANSWER_BYTES):
                if frames := answers.feed(data):
                    if [frame.kind for frame in frames] == [Kind.READY]:
                        return
                    break
        except FrameError as error:
            raise OSError(str(error)) from error
        raise OSError("it did not say that it is ready")

    def take(self) -> tuple[Child, socket.socket]:
        """Process and socket; they are the caller's now."""
        return self._child, self._sock

    async def drop(self) -> None:
        """End it."""
        self._sock.close()
        await self._child.kill()
