"""What commands print: text for people in one look, or JSON for programs. Nothing else writes to standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self, TextIO

import click

__all__ = ["Output", "Progress", "clean", "format_bytes"]

_MISSING = "-"
_KIB = 1024


class Output:
    """Results go to ``out``; remarks and progress go to ``err``, and only when a person reads."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._colour = self._out.isatty() and not os.environ.get("NO_COLOR")

    def result(self, data: Mapping[str, Any], text: str) -> None:
        """The result of a command: one JSON document, or its text."""
        self._write(json.dumps(data, indent=2, ensure_ascii=False) if self.as_json else text)

    def line(self, data: Mapping[str, Any], text: str) -> None:
        """One of many results that follow each other: a JSON line, or a line of text. Written through at once."""
        self._write(json.dumps(data, ensure_ascii=False) if self.as_json else text)

    def remark(self, text: str) -> None:
        """Something for a person to know that is no result."""
        if not self.as_json:
            self._err.write(f"{text}\n")
            self._err.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> str:
        """Aligned columns under their names; those named in ``numbers`` stand to the right."""
        cells = [[_cell(value) for value in row] for row in rows]
        widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
        right = [name in numbers for name in columns]
        lines = [self._row([name.upper() for name in columns], widths, right)]
        lines[0] = self.style(lines[0], bold=True)
        return "\n".join([*lines, *(self._row(row, widths, right) for row in cells)])

    def fields(self, pairs: Sequence[tuple[str, object]]) -> str:
        """Names and values under each other, values aligned."""
        width = max(len(name) for name, _ in pairs) + 2
        return "\n".join(self.style(f"{name:<{width}}", bold=True) + _cell(value) for name, value in pairs)

    def style(self, text: str, *, bold: bool = False, colour: str | None = None) -> str:
        """``text`` set off on a terminal, and as it is elsewhere."""
        return click.style(text, bold=bold or None, fg=colour) if self._colour else text

    def progress(self, label: str) -> Progress:
        """A bar on the terminal's error stream; nothing when that is no terminal or JSON was asked for."""
        visible = not self.as_json and self._err.isatty()
        return Progress(self._err if visible else None, label)

    @staticmethod
    def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
        padded = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    def _write(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()


class Progress:
    """A line that shows how many bytes are done, redrawn once per per cent."""

    WIDTH = 30

    def __init__(self, stream: TextIO | None, label: str) -> None:
        self._stream = stream
        self._label = label
        self._shown = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None and self._shown >= 0:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """``done_bytes`` of the total are done."""
        percent = min(100, done_bytes * 100 // max(total_bytes, 1))
        if self._stream is None or percent == self._shown:
            return
        self._shown = percent
        filled = percent * self.WIDTH // 100
        bar = "#" * filled + "." * (self.WIDTH - filled)
        self._stream.write(f"\r{self._label}  [{bar}] {percent:3d} %  {format_bytes(done_bytes)}")
        self._stream.flush()


def format_bytes(count: int) -> str:
    """A size as people write it: ``512 B``, ``1.5 KiB``, ``20.0 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    return f"{size:.1f} GiB"


def _cell(value: object) -> str:
    return _MISSING if value is None or value == "" else clean(str(value))


def clean(text: str) -> str:
    """``text`` from elsewhere without what could steer a terminal; tabs stay."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
