"""Files that cannot run: each is told what is wrong with it."""

import struct
from pathlib import Path

from nex.testing.examples import Examples

from .commands import Nex, Running

PT_LOAD, PT_INTERP = 1, 3


def elf(*, bits: int = 64, machine: int = 62, segment: int = PT_LOAD, size: int = 4096) -> bytes:
    """An ELF file with one program header; enough for whoever reads headers."""
    wide = bits == 64
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    sizes = (64, 56) if wide else (52, 32)
    numbers = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    head = ident + struct.pack(numbers, 2, machine, 1, 0x401000, sizes[0], 0, 0, *sizes, 1, 0, 0, 0)
    program = struct.pack("<IIQQQQQQ", segment, 5, 0, 0x400000, 0x400000, 32, 32, 4096) if wide else bytes(32)
    body = head + program + b"/lib64/ld-linux-x86-64.so.2\0"
    return body + bytes(max(size - len(body), 0))


BAD_FILES = {
    "dynamic": (elf(segment=PT_INTERP), 3, "dynamic"),
    "narrow": (elf(bits=32, machine=3), 3, "32-bit"),
    "cut": (elf(size=0)[:40], 3, "truncated"),
    "broken.wasm": (b"\0asm\x01\0\0\0garbage", 3, "rejected"),
    "syntax.js": (b"(s, p) => {", 3, "SyntaxError"),
    "nothing.js": (b"'no function'", 3, "function"),
    "notes.txt": (b"hello", 2, "cannot tell what"),
    "empty.js": (b"", 2, "is empty"),
    "text.wasm": (b"hello", 2, "no WebAssembly module"),
    "bad name.js": (b"(s, p) => p", 2, "cannot be a workload's name"),
}


async def test_a_bad_file_is_told_what_is_wrong_with_it(nex: Nex, node: Running, tmp_path: Path) -> None:
    for name, (data, code, words) in BAD_FILES.items():
        (tmp_path / name).write_bytes(data)
        result = await nex("devrun", tmp_path / name)
        assert (result.code, result.out) == (code, ""), result
        assert words in result.err
        assert "Traceback" not in result.err
    assert (await nex("node", "probe", "--json")).json == {"workloads": []}


async def test_a_bad_file_is_told_to_programs_too(nex: Nex, node: Running, tmp_path: Path) -> None:
    for name in ("dynamic", "notes.txt"):
        data, code, words = BAD_FILES[name]
        (tmp_path / name).write_bytes(data)
        result = await nex("devrun", tmp_path / name, "--json")
        assert (result.code, result.out) == (code, ""), result
        assert words in result.error["message"]


async def test_an_executable_for_another_machine_finds_no_node(nex: Nex, node: Running, tmp_path: Path) -> None:
    file = tmp_path / "foreign"
    file.write_bytes(elf(machine=183))
    result = await nex("devrun", file)
    assert result.code == 4
    assert "no such node: one that can run this workload" in result.err


async def test_the_type_that_is_asked_for_must_fit_the_file(nex: Nex, tmp_path: Path, examples: Examples) -> None:
    result = await nex("devrun", examples.script, "--type", "native")
    assert (result.code, "is no ELF file" in result.err) == (2, True)
    assert (await nex("devrun", tmp_path / "gone.js")).code == 2


async def test_what_a_service_or_function_cannot_have_is_refused_at_once(nex: Nex, examples: Examples) -> None:
    for args in (
        (examples.script, "--essential"),
        (examples.service, "--trigger_subject", "a"),
        (examples.script, "--trigger_subject", "a b"),
        (examples.script, "no-pair"),
        (examples.script, "--name", "a.b"),
        (examples.service, "--argv", "'open"),
    ):
        result = await nex("devrun", *args)
        assert (result.code, result.out) == (2, "")


async def test_a_denied_trigger_is_refused_by_the_node(nex: Nex, node: Running, examples: Examples) -> None:
    result = await nex("devrun", examples.script, "--trigger_subject", ">", "--json")
    assert result.code == 3
    assert result.error["code"] == "refused"
    assert "deny list" in result.error["message"]
