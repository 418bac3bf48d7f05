"""What functions of every engine share: a pool of workers between the call and the engine."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping

import msgspec

from nex.errors import CallError, CallFailed, CallTooLarge, WorkloadError
from nex.processes import Exit
from nex.providers.base import Caller, Function, Log, Workload
from nex.providers.frames import Frame, Kind
from nex.providers.texts import log_text, safe_text
from nex.providers.worker import Launched
from nex.providers.workers import WorkerPool

__all__ = ["PooledFunction"]

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_HEADERS_BYTES = 64 * 1024
_BLOCK_BYTES = 64
"""By how much headers can be longer in a message than in JSON."""
_encode_json = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class PooledFunction(Function):
    """A function whose engine runs in processes of its own."""

    def __init__(self, workload: Workload, log: Log) -> None:
        super().__init__(workload, log)
        self._limits = workload.limits
        self._pool = WorkerPool(self._launch, self._load, limits=workload.limits, log=log, host=workload.host)

    @abstractmethod
    def _launch(self) -> Launched:
        """A worker process, and the socket over which it speaks frames."""

    @abstractmethod
    def _load(self) -> tuple[bytes, bytes]:
        """Head and body of the frame that makes a worker load the function."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes in which the function runs now."""
        return self._pool.pids

    async def start(self) -> None:
        """As the seam says: with one worker, which has loaded the function."""
        try:
            await self._pool.start()
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, grace_s: float) -> Exit:
        """As the seam says."""
        await self._pool.stop(grace_s)
        return Exit(0)

    def begin(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, caller: Caller) -> None:
        """As the seam says."""
        head = subject.encode()
        if headers:
            head += b"\0" + _encode_json(headers)
        try:
            self._pool.begin(head, payload, _Pending(self, caller))
        except CallError as error:
            caller.failed(error)

    def read(self, frame: Frame) -> tuple[bytes, Mapping[str, str] | None]:
        """Payload and headers of the reply that a worker's last frame of a call holds.

        Raises:
            CallError: it holds none.
        """
        if frame.kind == Kind.RESULT:
            if len(frame.body) > self._limits.result_bytes:  # workers look themselves, and are not to be trusted
                raise CallTooLarge(self._limits.result_bytes)
            if not frame.head:
                return frame.body, None
            headers = _read_headers(frame.head)
            if len(frame.body) + len(frame.head) + _BLOCK_BYTES > self._limits.reply_bytes:
                raise CallTooLarge(self._limits.reply_bytes)  # a leaf node that sends it would be cut off
            return frame.body, headers
        if frame.kind == Kind.TOO_LARGE:
            raise CallTooLarge(self._limits.result_bytes)
        if frame.body:
            log_text(self.log, b"ERROR", frame.body)
        raise CallFailed(safe_text(frame.head) or "the function failed without saying why")


class _Pending:
    """The caller of a function, as the pool sees it: a `Waiter`."""

    __slots__ = ("_caller", "_function")

    def __init__(self, function: PooledFunction, caller: Caller) -> None:
        self._function = function
        self._caller = caller

    def done(self) -> bool:
        return self._caller.gone

    def set_result(self, frame: Frame) -> None:
        try:
            payload, headers = self._function.read(frame)
        except CallError as error:
            self._caller.failed(error)
        else:
            self._caller.answered(payload, headers)

    def set_exception(self, error: WorkloadError) -> None:
        self._caller.failed(error if isinstance(error, CallError) else CallFailed(str(error)))


def _read_headers(data: bytes) -> dict[str, str]:
    """The headers of a result, if they may stand in a message."""
    if len(data) > _HEADERS_BYTES:
        raise CallFailed("the function's headers are too large")
    try:
        headers = _decode_headers(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CallFailed("the function's headers are not an object of strings") from error
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or "\r" in value or "\n" in value or "\0" in value:
            raise CallFailed("the function's headers cannot be sent: a name or value holds what a header may not hold")
    return headers
