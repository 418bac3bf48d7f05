"""The part of WASI preview 1 that is ours: standard streams in memory, the arguments and the environment of one run.

A program that imports no more of WASI than this needs nothing of wasmtime's, which is slow to set up.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["ADDRESSES", "EFAULT", "PUT", "OutsideMemory", "Stopped", "WasiFunctions"]

ADDRESSES = memoryview((ctypes.c_ubyte * sys.maxsize).from_address(0)).cast("B")
"""All that this process can address; who reads or writes what is not there dies of it."""
PUT = struct.Struct("<I").pack_into
"""``PUT(buffer, at, value)`` writes an i32."""

EFAULT = 21
_EBADF, _SUCCESS = 8, 0
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_STDERR_BYTES = 65536
# i32 arguments, each in a slot as wide as the largest value.
_ONE = struct.Struct("<I12x").unpack_from
_TWO = struct.Struct("<I12xI12x").unpack_from
_FOUR = struct.Struct("<I12xI12xI12xI12x").unpack_from
_VECTOR = struct.Struct("<II").unpack_from


class Stopped(Exception):  # noqa: N818 - reads as what happened
    """The run must end here; the text says why."""


class OutsideMemory(Exception):  # noqa: N818
    """The program has named a place that is not in its memory."""


class WasiFunctions:
    """Carries the imports out, for one run after another.

    Args:
        view: gives the memory of the instance which calls, as large as it is now. It never moves.
    """

    def __init__(self, view: Callable[[], memoryview]) -> None:
        self._view = view
        self.functions: Final[dict[str, tuple[int, bool, Callable[[int], int]]]] = {
            "fd_read": (4, True, self._fd_read),
            "fd_write": (4, True, self._fd_write),
            "args_sizes_get": (2, True, lambda values: self._sizes(values, self._arguments)),
            "args_get": (2, True, lambda values: self._get(values, self._arguments)),
            "environ_sizes_get": (2, True, lambda values: self._sizes(values, self._environment)),
            "environ_get": (2, True, lambda values: self._get(values, self._environment)),
            "proc_exit": (1, False, self._proc_exit),
        }
        """How many i32 each takes, whether it gives one back, and what does it, given the address of its arguments.

        That raises `Stopped` where the run must end, `OutsideMemory` where the result is `EFAULT`.
        """
        self.begin((), (), b"")
        self._memory = memoryview(b"")

    def load(self, output_bytes: int, on_stderr: Callable[[bytes], None]) -> None:
        """How much the runs from now on may write to standard output, and who gets their standard error."""
        self._output_bytes = output_bytes
        self._on_stderr = on_stderr

    def begin(self, arguments: Sequence[bytes], environment: Sequence[bytes], stdin: bytes) -> None:
        """A run begins, with ``argv``, ``NAME=value`` pairs and all of standard input."""
        self._arguments = arguments
        self._environment = environment
        self._input, self._read = stdin, 0
        self.output: list[bytes] = []
        self._written = 0
        self.is_over = False
        """Whether it wrote too much, and was stopped."""
        self.exit_code: int | None = None
        """What it gave `proc_exit`, if it called that."""

    def look(self) -> None:
        """There is an instance with a memory."""
        self._memory = self._view()

    def _up_to(self, end: int) -> memoryview:
        """The memory, if it has bytes up to there; it may have grown."""
        if end > len(self._memory):
            self.look()
            if end > len(self._memory):
                raise OutsideMemory
        return self._memory

    def _fd_read(self, values: int) -> int:
        """``fd_read(fd, iovs, count, read)``: from the input, for file 0."""
        fd, vector, count, total_at = _FOUR(ADDRESSES, values)
        if fd != _STDIN:
            return _EBADF
        memory = self._memory
        end = vector + 8 * count
        if end > len(memory) or total_at + 4 > len(memory):
            memory = self._up_to(max(end, total_at + 4))
        position = self._read
        while vector < end:
            at, length = _VECTOR(memory, vector)
            if at + length > len(memory):
                memory = self._up_to(at + length)
            piece = self._input[position : position + length]
            size = len(piece)
            memory[at : at + size] = piece
            position += size
            if size < length:
                break
            vector += 8
        PUT(memory, total_at, position - self._read)
        self._read = position
        return _SUCCESS

    def _fd_write(self, values: int) -> int:
        """``fd_write(fd, iovs, count, written)``: to the output for file 1, to the log for file 2."""
        fd, vector, count, total_at = _FOUR(ADDRESSES, values)
        if fd not in (_STDOUT, _STDERR):
            return _EBADF
        memory = self._memory
        end = vector + 8 * count
        if end > len(memory) or total_at + 4 > len(memory):
            memory = self._up_to(max(end, total_at + 4))
        total = 0
        while vector < end:
            at, length = _VECTOR(memory, vector)
            if at + length > len(memory):
                memory = self._up_to(at + length)
            total += length
            vector += 8
            if not length:  # there may be any number of these
                continue
            if fd == _STDERR:
                self._on_stderr(bytes(memory[at : at + min(length, _STDERR_BYTES)]))
                continue
            self._written += length
            if self._written > self._output_bytes:
                self.is_over = True
                raise Stopped("too much output")
            self.output.append(bytes(memory[at : at + length]))
        PUT(memory, total_at, total & 0xFFFFFFFF)  # vectors may overlap: what goes to the log has no bound
        return _SUCCESS

    def _sizes(self, values: int, strings: Sequence[bytes]) -> int:
        """``…_sizes_get(count, size)``: how many there are, and their bytes with a NUL behind each."""
        count_at, size_at = _TWO(ADDRESSES, values)
        memory = self._up_to(max(count_at, size_at) + 4)
        PUT(memory, count_at, len(strings))
        PUT(memory, size_at, sum(map(len, strings)) + len(strings))
        return _SUCCESS

    def _get(self, values: int, strings: Sequence[bytes]) -> int:
        """``…_get(pointers, bytes)``: the address of each, and all of them."""
        pointers_at, at = _TWO(ADDRESSES, values)
        total = sum(map(len, strings)) + len(strings)
        memory = self._up_to(max(pointers_at + 4 * len(strings), at + total))
        for each in strings:
            PUT(memory, pointers_at, at)
            memory[at : at + len(each) + 1] = each + b"\0"
            pointers_at += 4
            at += len(each) + 1
        return _SUCCESS

    def _proc_exit(self, values: int) -> int:
        """``proc_exit(code)``: the end of the run."""
        (self.exit_code,) = _ONE(ADDRESSES, values)
        raise Stopped("the program has ended itself")
