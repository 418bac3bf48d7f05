"""A worker that was started before there was a function for it, and waits."""

from __future__ import annotations

from nex.providers.frames import FrameError, FrameReader, Kind, encode
from nex.providers.worker import Launched

__all__ = ["Spare"]

_WARM_TIMEOUT_S = 60.0
_ANSWER_BYTES = 4096


class Spare:
    """An engine process that waits. It is taken or dropped, once."""

    def __init__(self, launched: Launched) -> None:
        self._launched = launched
        self._child, self._sock = launched[:2]

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

    def take(self) -> Launched:
        """Process and sockets; they are the caller's now."""
        return self._launched

    async def drop(self) -> None:
        """End it."""
        for sock in self._launched[1:]:
            sock.close()
        await self._child.kill()
