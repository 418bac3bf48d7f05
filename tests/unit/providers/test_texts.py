from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nex.providers.texts import log_text, safe_text


@given(st.binary(max_size=3000))
def test_a_safe_text_fits_into_a_header(data: bytes) -> None:
    text = safe_text(data)
    assert len(text) <= 512
    assert not any(character in text for character in "\r\n\0\x1b\u2028")


def test_a_safe_text_says_what_was_said() -> None:
    assert safe_text("Error: zu groß\n  at line 1".encode()) == "Error: zu groß   at line 1"
    assert safe_text(b"x" * 600) == "x" * 511 + "…"
    assert safe_text(b"\xff") == "\ufffd"


@given(st.text(max_size=200).map(str.encode), st.sampled_from([b"DEBUG", b"INFO", b"WARN", b"ERROR"]))
def test_log_lines_are_those_of_the_text(data: bytes, level: bytes) -> None:
    lines: list[tuple[str, str]] = []
    log_text(lambda *line: lines.append(line), level, data)
    assert {said for said, _ in lines} == {level.decode()}
    assert [text for _, text in lines] == [line.removesuffix("\r") for line in data.decode().split("\n")]


def test_long_lines_come_in_pieces_and_unknown_levels_are_info() -> None:
    lines: list[tuple[str, str]] = []
    log_text(lambda *line: lines.append(line), b"\xffFATAL", b"x" * 40000 + b"\ny")
    assert [(level, len(text)) for level, text in lines] == [
        ("INFO", 16384),
        ("INFO", 16384),
        ("INFO", 40000 - 2 * 16384),
        ("INFO", 1),
    ]
