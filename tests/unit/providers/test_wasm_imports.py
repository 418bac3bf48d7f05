"""What WebAssembly functions may import is what the reference and the C header say."""

from __future__ import annotations

import re
from pathlib import Path

from nex.providers.hostroutes import _CALLS
from nex.providers.wasm_host import IMPORTS

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference"


def test_the_reference_has_all_imports_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` → (\w+) \|", (REFERENCE / "wasm-abi.md").read_text(), re.MULTILINE)
    told = {name: (tuple(re.findall(r"(\w+): (\w+)", parameters)), result) for name, parameters, result in rows}
    assert told == {name: (what.parameters, what.result) for name, what in IMPORTS.items()}
    assert len(rows) == len(told)


def test_the_header_has_all_imports_as_they_are() -> None:
    header = (ROOT / "examples" / "wasm" / "nex.h").read_text()
    shorthand = {"NEX_TEXT": ["i32", "i32"], "NEX_DATA": ["i32", "i32"], "NEX_SPACE": ["i32", "i32"]}
    types = {"int64_t": "i64", "int32_t": "i32", "uint32_t": "i32", "nex_status": "i32", "void": "i32"}
    found = {}
    for name, result, parameters in re.findall(r"NEX_IMPORT\((\w+)\) (\w+) \w+\((.*?)\);", header):
        words = [word.strip() for word in parameters.split(",") if word.strip() != "void"]
        kinds = [shorthand.get(word) or [types[word.replace("const ", "").split()[0]]] for word in words]
        found[name] = (tuple(kind for several in kinds for kind in several), types[result])
    assert found == {name: (what.types, what.result_type) for name, what in IMPORTS.items()}


def test_the_reference_has_all_requests() -> None:
    rows = re.findall(
        r"^\| `([A-Z]+) /(\w+)(/<\w+>)?(?:\?([^`]*))?`", (REFERENCE / "host-services-http.md").read_text(), re.MULTILINE
    )
    told = {(collection, verb, bool(name)): "" for verb, collection, name, _ in rows}
    assert told.keys() == _CALLS.keys()
    parameters = {(row[1], word.partition("=")[0]) for row in rows for word in row[3].split("&") if word}
    for (collection, _, _), (kind, others) in _CALLS.items():
        for each in (kind, *others.values()):
            own = {"verb": "method"}
            for field in set(each.__struct_fields__) - {"key", "name", "subject", "headers", "metadata", "streams"}:
                assert (collection, own.get(field, field)) in parameters, f"{field} of {each.__name__}"
        for flag in others:
            assert (collection, flag) in parameters
