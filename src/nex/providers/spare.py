"""Workers that were started before there was a function for them, and wait."""

from __future__ import annotations

import signal
from collections.abc import Callable

from nex.errors import StartError
from nex.providers.frames import FrameError, FrameReader, Kind, encode
from nex.providers.worker import Launched

__all__ = ["Spare", "Spares"]

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

    def end(self) -> None:
        """End it; its reaper is whoever waits for children here."""
        for sock in self._launched[1:]:
            sock.close()
        self._child.signal(signal.SIGKILL)

    async def drop(self) -> None:
        """End it, and wait until it has."""
        self.end()
        await self._child.kill()


class Spares:
    """The spares of one type. None is among them that is not warm."""

    def __init__(self) -> None:
        self._waiting: list[Spare] = []

    def start(self, launch: Callable[[], Launched]) -> None:
        """Have one more, and wait until it is warm. Blocks.

        Raises:
            StartError: it cannot be started, or does not get warm; nothing of it is left.
        """
        try:
            spare = Spare(launch())
        except OSError as error:
            raise StartError(f"no worker can be started: {error.strerror}") from error
        try:
            spare.warm()
        except OSError as error:
            spare.end()
            raise StartError(f"a spare worker does not get warm: {error}") from error
        self._waiting.append(spare)

    def take(self) -> Launched | None:
        """One of them, if there is one."""
        return self._waiting.pop().take() if self._waiting else None

    async def drop(self) -> None:
        """End them all."""
        while self._waiting:
            await self._waiting.pop().drop()
