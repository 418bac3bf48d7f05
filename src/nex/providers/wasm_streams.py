"""The part of WASI preview 1 that is ours: standard streams in memory, the arguments and the environment of one run.

A program that imports no more of WASI than this needs nothing of wasmtime's, which is slow to set up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ctypes import string_at
from typing import Final

__all__ = ["Stopped", "WasiFunctions"]

_EBADF = (8).to_bytes(4, "little")
_EFAULT = (21).to_bytes(4, "little")
_SUCCESS = bytes(4)
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_STDERR_BYTES = 65536
# i32 arguments, each in a slot as wide as the largest value.
_ONE = struct.Struct("<I12x")
_TWO = struct.Struct("<I12xI12x")
_FOUR = struct.Struct("<I12xI12xI12xI12x")
_VECTOR = struct.Struct("<II")
_SIZE = struct.Struct("<I")


class Stopped(Exception):  # noqa: N818 - reads as what happened
    """The run must end here; the text says why."""


class WasiFunctions:
    """Carries the imports out, for one run after another.

    Args:
        view: gives the memory of the instance which calls, as large as it is now. It never moves.
    """

    def __init__(self, view: Callable[[], memoryview]) -> None:
        self._view = view
        self.functions: Final[dict[str, tuple[int, bool, Callable[[int], bytes]]]] = {
            "fd_read": (4, True, self._fd_read),
            "fd_write": (4, True, self._fd_write),
            "args_sizes_get": (2, True, lambda values: self._sizes(values, self._arguments)),
            "args_get": (2, True, lambda values: self._get(values, self._arguments)),
            "environ_sizes_get": (2, True, lambda values: self._sizes(values, self._environment)),
            "environ_get": (2, True, lambda values: self._get(values, self._environment)),
            "proc_exit": (1, False, self._proc_exit),
        }
        """How many i32 each takes, whether it gives one back, and what does it, given the address of its arguments."""
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

    def _holds(self, end: int) -> bool:
        """Whether the memory has bytes up to there; it may have grown."""
        if end > len(self._memory):
            self.look()
        return end <= len(self._memory)

    def _fd_read(self, values: int) -> bytes:
        """``fd_read(fd, iovs, count, read)``: from the input, for file 0."""
        fd, vectors, count, total_at = _FOUR.unpack(string_at(values, 64))
        if fd != _STDIN:
            return _EBADF
        end = vectors + 8 * count
        if not self._holds(max(end, total_at + 4)):
            return _EFAULT
        memory = self._memory
        start = position = self._read
        for vector in range(vectors, end, 8):
            at, length = _VECTOR.unpack_from(memory, vector)
            if not self._holds(at + length):
                return _EFAULT
            piece = self._input[position : position + length]
            if piece:
                self._memory[at : at + len(piece)] = piece
                position += len(piece)
            if len(piece) < length:
                break
        self._read = position
        _SIZE.pack_into(memory, total_at, position - start)
        return _SUCCESS

    def _fd_write(self, values: int) -> bytes:
        """``fd_write(fd, iovs, count, written)``: to the output for file 1, to the log for file 2."""
        fd, vectors, count, total_at = _FOUR.unpack(string_at(values, 64))
        if fd not in (_STDOUT, _STDERR):
            return _EBADF
        end = vectors + 8 * count
        if not self._holds(max(end, total_at + 4)):
            return _EFAULT
        memory = self._memory
        total = 0
        for vector in range(vectors, end, 8):
            at, length = _VECTOR.unpack_from(memory, vector)
            if not self._holds(at + length):
                return _EFAULT
            total += length
            if fd == _STDERR:
                self._on_stderr(bytes(self._memory[at : at + min(length, _STDERR_BYTES)]))
                continue
            self._written += length
            if self._written > self._output_bytes:
                self.is_over = True
                raise Stopped("too much output")
            self.output.append(bytes(self._memory[at : at + length]))
        _SIZE.pack_into(memory, total_at, total)
        return _SUCCESS

    def _sizes(self, values: int, strings: Sequence[bytes]) -> bytes:
        """``…_sizes_get(count, size)``: how many there are, and their bytes with a NUL behind each."""
        count_at, size_at = _TWO.unpack(string_at(values, 32))
        if not self._holds(max(count_at, size_at) + 4):
            return _EFAULT
        _SIZE.pack_into(self._memory, count_at, len(strings))
        _SIZE.pack_into(self._memory, size_at, sum(map(len, strings)) + len(strings))
        return _SUCCESS

    def _get(self, values: int, strings: Sequence[bytes]) -> bytes:
        """``…_get(pointers, bytes)``: the address of each, and all of them."""
        pointers_at, at = _TWO.unpack(string_at(values, 32))
        total = sum(map(len, strings)) + len(strings)
        if not self._holds(max(pointers_at + 4 * len(strings), at + total)):
            return _EFAULT
        for each in strings:
            _SIZE.pack_into(self._memory, pointers_at, at)
            self._memory[at : at + len(each) + 1] = each + b"\0"
            pointers_at += 4
            at += len(each) + 1
        return _SUCCESS

    def _proc_exit(self, values: int) -> bytes:
        """``proc_exit(code)``: the end of the run."""
        (self.exit_code,) = _ONE.unpack(string_at(values, 16))
        raise Stopped("the program has ended itself")
