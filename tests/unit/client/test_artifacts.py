import hashlib
import struct
from pathlib import Path

import pytest

from nex.client import artifacts
from nex.errors import UsageError


def elf(machine: int = 62, order: int = 1) -> bytes:
    fmt = "<" if order == 1 else ">"
    return b"\x7fELF" + bytes([2, order, 1]) + bytes(9) + struct.pack(f"{fmt}HH", 2, machine) + bytes(44)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "kind", "arch"),
    [
        ("echo", elf(62), "native", "amd64"),
        ("echo", elf(183), "native", "arm64"),
        ("echo", elf(183, order=2), "native", "arm64"),
        ("echo", elf(3), "native", ""),
        ("cut", b"\x7fELF\x02\x01", "native", ""),
        ("odd.js", elf(62), "native", "amd64"),
        ("f.wasm", b"\0asm\x01\0\0\0", "wasm", ""),
        ("f", b"\0asm\x01\0\0\0", "wasm", ""),
        ("f.js", b"(s, p) => p", "v8", ""),
        ("f.mjs", b"export default 1", "v8", ""),
        ("F.TS", b"export default 1", "v8", ""),
    ],
)
def test_type_is_told_by_content_and_then_by_the_files_ending(
    tmp_path: Path, name: str, data: bytes, kind: str, arch: str
) -> None:
    found = artifacts.inspect(write(tmp_path, name, data))
    assert (found.type, found.arch) == (kind, arch)
    assert (found.size, found.digest) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("name", "data", "hint", "words"),
    [
        ("notes.txt", b"hello", "", "cannot tell what"),
        ("f.js", b"", "", "is empty"),
        ("f.wasm", b"text", "", "is no WebAssembly module"),
        ("f.js", b"text", "native", "is no ELF file"),
        ("f", elf(), "js", "is no JavaScript"),
        ("f.js", b"x", "cobol", "no workload type 'cobol'"),
        ("f o.js", b"x", "", "cannot be a workload's name"),
        ("ü.js", b"x", "", "cannot be a workload's name"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, data: bytes, hint: str, words: str) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(UsageError, match=words):
        artifacts.inspect(path, type_hint=hint)


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        artifacts.inspect(tmp_path / "gone.js")
    with pytest.raises(UsageError, match="directory"):
        artifacts.inspect(tmp_path)


def test_the_hint_overrules_the_ending(tmp_path: Path) -> None:
    assert artifacts.inspect(write(tmp_path, "f.txt", b"x => x"), type_hint="TypeScript").type == "v8"


def test_dots_go_from_a_name_as_in_0_2(tmp_path: Path) -> None:
    assert artifacts.name_of(Path("/x/echo.v2.js")) == "echov2js"
    assert artifacts.inspect(write(tmp_path, "b ad.js", b"x"), name="good_one-2").name == "good_one-2"


@pytest.mark.parametrize(("key", "kind"), [("a/b.wasm", "wasm"), ("f.JS", "v8"), ("echojs", ""), ("a.tar", "")])
def test_the_ending_of_a_key_tells_its_type(key: str, kind: str) -> None:
    assert artifacts.type_of_name(key) == kind
