"""Keys and seed files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from golden_claims import ISSUER, NODE, NODE_CURVE_PUBLIC, NODE_CURVE_SEED, SENDER, USER_ISSUER
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import KeyFormatError, UsageError
from nex.security.encoding import KINDS, decode_public, decode_seed, encode_public, encode_seed
from nex.security.keys import KeyKind, SigningKey, check_public, exposure, read_seed, verify, write_seed

RAW = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(ISSUER, "account"), (NODE, "server"), (USER_ISSUER, "user"), (SENDER, "curve"), (NODE_CURVE_PUBLIC, "curve")],
)
def test_public_keys_of_go_decode_and_encode(text: str, kind: str) -> None:
    assert check_public(text, kind) == text
    assert encode_public(*decode_public(text)) == text


def test_a_seed_of_go_decodes_and_encodes() -> None:
    assert encode_seed(*decode_seed(NODE_CURVE_SEED)) == NODE_CURVE_SEED


@given(kind=st.sampled_from(sorted(KINDS)), raw=RAW)
def test_encoding_round_trips(kind: str, raw: bytes) -> None:
    assert decode_public(encode_public(kind, raw)) == (kind, raw)
    assert decode_seed(f"\n {encode_seed(kind, raw)} \n") == (kind, raw)


@given(raw=RAW, position=st.integers(0, 55), char=st.characters())
def test_a_public_key_has_one_spelling(raw: bytes, position: int, char: str) -> None:
    text = encode_public("account", raw)
    changed = text[:position] + char + text[position + 1 :]
    if changed != text:
        with pytest.raises(KeyFormatError):
            decode_public(changed)


@given(raw=RAW, position=st.integers(0, 57), char=st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567=0 \n"))
def test_a_damaged_seed_is_told_without_showing_it(raw: bytes, position: int, char: str) -> None:
    text = encode_seed("user", raw)
    changed = text[:position] + char + text[position + 1 :]
    if changed.strip() != text:
        with pytest.raises(KeyFormatError) as caught:
            SigningKey.from_seed(changed)
        assert text[4:20] not in str(caught.value)


@given(text=st.text(max_size=80))
def test_any_text_is_a_key_or_a_key_format_error(text: str) -> None:
    for decode in (decode_public, decode_seed):
        with pytest.raises(KeyFormatError):
            decode(text)


@pytest.mark.parametrize(("kind", "letter"), [("account", "A"), ("server", "N"), ("user", "U"), ("operator", "O")])
def test_a_new_key_signs(kind: KeyKind, letter: str) -> None:
    key = SigningKey.create(kind)
    assert key.public.startswith(letter)
    assert key.seed().startswith(f"S{letter}")
    again = SigningKey.from_seed(f"{key.seed()}\n")
    assert (again.public, again.kind) == (key.public, kind)
    signature = again.sign(b"data")
    assert verify(key.public, b"data", signature)
    assert not verify(key.public, b"Data", signature)
    assert not verify(key.public, b"data", signature[:-1])
    assert not verify(SigningKey.create(kind).public, b"data", signature)


@given(data=st.binary(max_size=64), bit=st.integers(0, 511))
def test_a_changed_signature_does_not_verify(data: bytes, bit: int) -> None:
    key = SigningKey("account", bytes(32))
    signature = bytearray(key.sign(data))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(key.public, data, bytes(signature))


@pytest.mark.parametrize("public", ["", "A", SENDER, NODE_CURVE_SEED, "é" * 56])
def test_what_is_no_signing_key_verifies_nothing(public: str) -> None:
    assert not verify(public, b"", bytes(64))


def test_the_point_of_small_order_verifies_nothing() -> None:
    # With the neutral element as the key, a naive verifier takes one signature for every message.
    identity = bytes([1]) + bytes(31)
    assert not verify(encode_public("account", identity), b"any", identity + bytes(32))


def test_kinds_are_told_apart() -> None:
    with pytest.raises(KeyFormatError, match="kind server, not account"):
        check_public(NODE, "account")
    with pytest.raises(KeyFormatError, match="cannot sign"):
        SigningKey.from_seed(NODE_CURVE_SEED)
    with pytest.raises(KeyFormatError, match="characters instead of 58"):
        SigningKey.from_seed(ISSUER)


def test_a_key_does_not_show_its_seed() -> None:
    key = SigningKey.create("account")
    assert key.seed() not in repr(key)
    assert key.public in repr(key)
    assert not hasattr(key, "__dict__")


def test_a_seed_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys" / "node.nk"
    seed = SigningKey.create("server").seed()
    write_seed(path, seed)
    assert read_seed(path) == seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert exposure(path) == ""
    with pytest.raises(UsageError, match="exists"):
        write_seed(path, SigningKey.create("server").seed())
    assert read_seed(path) == seed
    assert [item.name for item in path.parent.iterdir()] == ["node.nk"]


def test_a_seed_file_open_to_others_is_told(tmp_path: Path) -> None:
    path = tmp_path / "open.nk"
    write_seed(path, SigningKey.create("user").seed())
    path.chmod(0o644)
    assert "chmod 600" in exposure(path)
    assert exposure(tmp_path / "missing") == ""


def test_files_that_hold_no_seed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the key file"):
        read_seed(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot read the key file"):
        read_seed(tmp_path)
    path = tmp_path / "garbage"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(KeyFormatError, match="garbage"):
        read_seed(path)
    with pytest.raises(UsageError, match="cannot write the key file"):
        write_seed(path / "below-a-file", "x")
