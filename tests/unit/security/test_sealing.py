"""Sealed boxes and environments."""

from __future__ import annotations

import base64

import pytest
from golden_claims import ENVIRONMENT, ISSUER, NIL_ENVIRONMENT, NODE_CURVE_PUBLIC, NODE_CURVE_SEED, SENDER
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import KeyFormatError, SealError
from nex.security.encoding import encode_public
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, open_environment, seal_environment

NODE_KEY = CurveKey.from_seed(NODE_CURVE_SEED)
ALICE = CurveKey(bytes(range(32)))
BOB = CurveKey(bytes(range(1, 33)))
TEXT = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]))
ENVIRONMENTS = st.dictionaries(TEXT.filter(bool), TEXT)


def test_an_environment_sealed_by_go_opens() -> None:
    assert NODE_KEY.public == NODE_CURVE_PUBLIC
    assert open_environment(ENVIRONMENT, NODE_KEY, SENDER) == {"nats_url": "nats://127.0.0.1:4222"}
    assert open_environment(NIL_ENVIRONMENT, NODE_KEY, SENDER) == {}


def test_a_box_has_the_form_of_go() -> None:
    box = ALICE.seal(b"abc", BOB.public)
    assert box[:4] == b"xkv1"
    assert len(box) == 4 + 24 + 16 + 3
    assert ALICE.seal(b"abc", BOB.public) != box


@given(data=st.binary(max_size=300))
def test_boxes_round_trip(data: bytes) -> None:
    assert BOB.open(ALICE.seal(data, BOB.public), ALICE.public) == data


@given(data=st.binary(max_size=40), position=st.integers(min_value=0))
def test_a_box_with_any_bit_changed_does_not_open(data: bytes, position: int) -> None:
    box = bytearray(ALICE.seal(data, BOB.public))
    bit = position % (len(box) * 8)
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError, match="wrong version" if bit < 32 else "could not decrypt"):
        BOB.open(bytes(box), ALICE.public)


@given(size=st.integers(0, 50))
def test_a_box_cut_short_does_not_open(size: int) -> None:
    box = ALICE.seal(b"seven b", BOB.public)[:size]
    with pytest.raises(SealError, match="could not decrypt" if size > 28 else "input is not valid"):
        BOB.open(box, ALICE.public)


def test_the_errors_are_those_of_go() -> None:
    box = ALICE.seal(b"data", BOB.public)
    with pytest.raises(SealError, match=r"^nkeys: not a valid sender public curve key$"):
        BOB.open(box, "X")
    with pytest.raises(SealError, match=r"^nkeys: not a valid sender public curve key$"):
        BOB.open(box, ISSUER)
    with pytest.raises(SealError, match=r"^nkeys: not a valid recipient public curve key$"):
        ALICE.seal(b"data", ISSUER)
    with pytest.raises(SealError, match=r"^nkeys: could not decrypt input$"):
        BOB.open(box, BOB.public)
    with pytest.raises(SealError, match=r"^nkeys: could not decrypt input$"):
        ALICE.open(box, NODE_CURVE_PUBLIC)
    with pytest.raises(SealError, match=r"^illegal base64 data at input byte 2$"):
        open_environment("ab*d", BOB, ALICE.public)
    with pytest.raises(SealError, match=r"^nkeys: encrypted input is not valid$"):
        open_environment("", BOB, ALICE.public)


def test_a_public_key_that_gives_a_known_secret_is_refused() -> None:
    weak = encode_public("curve", bytes(32))
    with pytest.raises(SealError):
        ALICE.seal(b"data", weak)
    with pytest.raises(SealError):
        ALICE.open(BOB.seal(b"data", ALICE.public), weak)


@given(env=ENVIRONMENTS)
def test_environments_round_trip(env: dict[str, str]) -> None:
    assert open_environment(seal_environment(env, ALICE, BOB.public), BOB, ALICE.public) == env


def test_line_breaks_in_the_base64_are_skipped() -> None:
    text = seal_environment({"K": "V"}, ALICE, BOB.public)
    assert open_environment(f"{text[:20]}\r\n{text[20:]}\n", BOB, ALICE.public) == {"K": "V"}


def test_an_environment_that_is_no_text_is_refused_without_showing_it() -> None:
    with pytest.raises(SealError, match="not valid Unicode") as caught:
        seal_environment({"K": "secret\udcff"}, ALICE, BOB.public)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("plain", "expected"),
    [(b"null", {}), (b"{}", {}), (b'{"A":null}', {"A": ""}), (b' {"a":"b","a":"c"}', {"a": "c"})],
)
def test_what_go_takes_for_an_environment(plain: bytes, expected: dict[str, str]) -> None:
    assert open_environment(sealed(plain), BOB, ALICE.public) == expected


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"secret",
        b'"secret"',
        b'["secret"]',
        b'{"secret":1}',
        b'{"secret":{}}',
        b'{"secret":"\xff"}',
        b'{"secret":"\\ud800x"}',
        b"[" * 100_000,
        b'{"":"secret"}',
        b'{"secret=":"secret"}',
        b'{"A":"secret\\u0000"}',
        b'{"secret\\u0000":""}',
    ],
)
def test_an_environment_that_cannot_be_is_refused_without_showing_it(plain: bytes) -> None:
    with pytest.raises(SealError) as caught:
        open_environment(sealed(plain), BOB, ALICE.public)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(plain=st.binary(max_size=60), text=st.text(max_size=60))
def test_nothing_but_a_seal_error_comes_of_garbage(plain: bytes, text: str) -> None:
    with pytest.raises(SealError):
        open_environment(sealed(b"!" + plain), BOB, ALICE.public)
    with pytest.raises(SealError):
        open_environment(text, BOB, ALICE.public)


def test_curve_keys_are_kept_apart_from_signing_keys() -> None:
    key = CurveKey.create()
    assert key.public.startswith("X")
    assert key.seed().startswith("SX")
    assert CurveKey.from_seed(f"{key.seed()}\n").public == key.public
    assert key.seed() not in repr(key)
    with pytest.raises(KeyFormatError, match="kind account"):
        CurveKey.from_seed(SigningKey.create("account").seed())


def sealed(plain: bytes) -> str:
    return base64.b64encode(ALICE.seal(plain, BOB.public)).decode()
