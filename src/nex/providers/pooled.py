"""What functions of every engine share: a pool of workers between the call and the engine."""

from __future__ import annotations

import re
from abc import abstractmethod

import msgspec

from nex.errors import CallFailed, CallTooLarge
from nex.processes import Exit
from nex.providers.base import Function, Invocation, Log, Result, Workload
from nex.providers.frames import Kind
from nex.providers.texts import log_text, safe_text
from nex.providers.worker import Launched
from nex.providers.workers import WorkerPool

__all__ = ["PooledFunction"]

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_HEADERS_BYTES = 64 * 1024
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

    async def call(self, invocation: Invocation) -> Result:
        """As the seam says."""
        head = invocation.subject.encode()
        if invocation.headers:
            head += b"\0" + _encode_json(invocation.headers)
        frame = await self._pool.call(head, invocation.payload)
        if frame.kind == Kind.RESULT:
            if len(frame.body) > self._limits.result_bytes:  # workers look themselves, and are not to be trusted
                raise CallTooLarge(self._limits.result_bytes)
            return Result(frame.body, _read_headers(frame.head) if frame.head else None)
        if frame.kind == Kind.TOO_LARGE:
            raise CallTooLarge(self._limits.result_bytes)
        if frame.body:
            log_text(self.log, b"ERROR", frame.body)
        raise CallFailed(safe_text(frame.head) or "the function failed without saying why")


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
