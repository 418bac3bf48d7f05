"""Claims of deploys and stops."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import golden_claims as golden
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import ClaimsError
from nex.security import jwt
from nex.security.base64text import decode_base64, decode_base64url, encode_base64url
from nex.security.claims import Claims, decode, sign_deploy, sign_stop, validate_deploy, validate_stop
from nex.security.keys import SigningKey

KEY = SigningKey("account", bytes(32))
NOW = 1_800_000_000
DIGEST = "ab" * 32
DEPLOY = sign_deploy(KEY, name="echo", hash=DIGEST, now=NOW)
CLONED = r"^stop claims appear to be cloned or captured from the original start claims. Rejecting for security reasons$"


class GoIssuer(SigningKey):
    """Signs nothing but has the public key whose claims Go published."""

    def __init__(self) -> None:
        super().__init__("account", bytes(32))
        self.public = golden.ISSUER


def test_claims_made_by_go_decode() -> None:
    claims = decode(golden.DEPLOY_JWT)
    assert claims == Claims(
        name="echofunctionjs",
        issuer=golden.ISSUER,
        issued_at=golden.ISSUED_AT,
        jti=golden.JTI,
        expires_at=0,
        not_before=0,
        hash=golden.HASH,
        has_hash=True,
        workload_id="",
        text_digest=hashlib.sha256(golden.DEPLOY_JWT.encode()).hexdigest(),
    )
    validate_deploy(claims, golden.ISSUED_AT)


def test_claims_signed_by_a_user_key_decode() -> None:
    claims = decode(golden.USER_JWT)
    assert (claims.issuer, claims.name, claims.has_hash) == (golden.USER_ISSUER, "wl", False)


def test_our_claims_are_those_of_go_up_to_the_signature() -> None:
    deploy = sign_deploy(GoIssuer(), name="echofunctionjs", hash=golden.HASH, now=golden.ISSUED_AT + 0.9)
    stop = sign_stop(GoIssuer(), name="echofunctionjs", workload_id="", now=golden.ISSUED_AT)
    assert deploy.rpartition(".")[0] == golden.DEPLOY_JWT.rpartition(".")[0]
    assert stop.rpartition(".")[0] == golden.STOP_JWT.rpartition(".")[0]


def test_the_name_is_checked_as_go_does() -> None:
    claims = decode(golden.BAD_NAME_JWT)
    with pytest.raises(ClaimsError) as caught:
        validate_deploy(claims, NOW)
    assert str(caught.value) == "workload name claim ('a b') does not match requirements (^[a-zA-Z0-9_-]+$)"


@pytest.mark.parametrize("name", ["", "a.b", "a\n", "é", "*", ">"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ClaimsError, match="does not match requirements"):
        validate_deploy(decode(sign_deploy(KEY, name=name, hash=DIGEST, now=NOW)), NOW)


def test_a_name_is_bounded() -> None:
    validate_deploy(decode(sign_deploy(KEY, name="a" * 255, hash=DIGEST, now=NOW)), NOW)
    with pytest.raises(ClaimsError, match="longer than 255"):
        validate_deploy(decode(sign_deploy(KEY, name="a" * 256, hash=DIGEST, now=NOW)), NOW)


def test_claims_hold_from_not_before_to_expiry() -> None:
    claims = dataclasses.replace(decode(DEPLOY), not_before=NOW - 5, expires_at=NOW + 5)
    validate_deploy(claims, NOW - 5)
    validate_deploy(claims, NOW + 5.9)
    for moment in (NOW - 5.1, NOW + 6):
        with pytest.raises(ClaimsError, match=r"^standard claims within JWT are not valid$"):
            validate_deploy(claims, moment)


def test_an_expiry_is_part_of_the_claims() -> None:
    claims = decode(sign_deploy(KEY, name="echo", hash=DIGEST, now=NOW, expires_at=NOW + 60))
    assert claims.expires_at == NOW + 60
    assert claims.jti != decode(DEPLOY).jti


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "expected 3 chunks"),
        ("abc", "expected 3 chunks"),
        ("a.b.c.d", "expected 3 chunks"),
        ("a.b.c", "illegal base64 data at input byte 0"),
        ("e30*.e30.e30", "illegal base64 data at input byte 3"),
        ("e30=.e30.e30", "illegal base64 data at input byte 3"),
    ],
)
def test_texts_that_are_no_claims(token: str, why: str) -> None:
    with pytest.raises(ClaimsError) as caught:
        decode(token)
    assert str(caught.value) == f"could not decode workload JWT: {why}"


def test_an_altered_signature_is_told_as_go_does() -> None:
    forged = golden.DEPLOY_JWT.rpartition(".")[0] + "." + golden.STOP_JWT.rpartition(".")[2]
    with pytest.raises(ClaimsError, match=r"^could not decode workload JWT: claim failed V2 signature verification$"):
        decode(forged)


@given(position=st.integers(0, len(DEPLOY) - 1), char=st.characters())
def test_claims_with_any_character_changed_are_refused(position: int, char: str) -> None:
    changed = DEPLOY[:position] + char + DEPLOY[position + 1 :]
    if changed != DEPLOY:
        with pytest.raises(ClaimsError):
            decode(changed)


@given(position=st.integers(0, len(DEPLOY)), extra=st.sampled_from(["\n", "\r", " ", "=", "A", "."]))
def test_claims_with_anything_added_are_refused(position: int, extra: str) -> None:
    with pytest.raises(ClaimsError):
        decode(DEPLOY[:position] + extra + DEPLOY[position:])


@given(st.text(max_size=100))
def test_any_text_gives_nothing_but_a_claims_error(text: str) -> None:
    with pytest.raises(ClaimsError):
        decode(text)


@given(
    header=st.sampled_from([b"{}", b"null", b'{"typ":"JWT","alg":"ed25519-nkey"}', b'{"typ":1}', b"[" * 5000]),
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["iss", "sub", "iat", "nats", "hash"]), inner),
    ),
)
def test_any_json_gives_nothing_but_a_claims_error(header: bytes, body: object) -> None:
    chunks = (encode_base64url(header), encode_base64url(json.dumps(body).encode()), encode_base64url(bytes(64)))
    with pytest.raises(ClaimsError):
        decode(".".join(chunks))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b'{"typ":"JWT","alg":"ed25519"}', "unexpected algorithm"),
        (b'{"typ":"JWT","alg":"none"}', "unexpected algorithm"),
        (b'{"typ":"JWE","alg":"ed25519-nkey"}', "not supported type"),
    ],
)
def test_headers_we_do_not_take(header: bytes, why: str) -> None:
    signed = f"{encode_base64url(header)}.{DEPLOY.split('.')[1]}"
    with pytest.raises(ClaimsError, match=why):
        decode(f"{signed}.{encode_base64url(KEY.sign(signed.encode()))}")


def test_claims_without_a_nats_object_are_bare() -> None:
    signed = ".".join(encode_base64url(part) for part in (b'{"typ":"jwt","alg":"ed25519-nkey"}', b'{"iss":"%s"}'))
    signed = signed.replace(encode_base64url(b'{"iss":"%s"}'), encode_base64url(f'{{"iss":"{KEY.public}"}}'.encode()))
    claims = decode(f"{signed}.{encode_base64url(KEY.sign(signed.encode()))}")
    assert (claims.has_hash, claims.hash, claims.workload_id, claims.issued_at) == (False, "", "", 0)


def test_a_stop_of_go_is_valid_one_second_later() -> None:
    deploy = decode(golden.DEPLOY_JWT)
    captured = decode(golden.STOP_JWT)
    with pytest.raises(ClaimsError, match=CLONED):
        validate_stop(captured, deploy, "cpabc")
    later = dataclasses.replace(captured, issued_at=captured.issued_at + 1, jti="other")
    validate_stop(later, deploy, "cpabc")
    with pytest.raises(ClaimsError, match=CLONED):
        validate_stop(dataclasses.replace(later, jti=deploy.jti), deploy, "cpabc")


def test_a_stop_has_to_be_for_the_same_name_by_the_same_issuer() -> None:
    deploy = decode(DEPLOY)
    with pytest.raises(ClaimsError, match=r"^stop claims subject does not match original start claims subject$"):
        validate_stop(decode(sign_stop(KEY, name="other", workload_id="", now=NOW + 1)), deploy, "id")
    stranger = SigningKey.create("account")
    for workload_id in ("", "id"):
        stop = decode(sign_stop(stranger, name="echo", workload_id=workload_id, now=NOW + 1))
        with pytest.raises(
            ClaimsError,
            match=r"^the only entity allowed to terminate a workload is the issuer that originally started it$",
        ):
            validate_stop(stop, deploy, "id")


def test_a_stop_that_names_an_id_stops_only_that_and_at_any_time() -> None:
    deploy = decode(DEPLOY)
    stop = decode(sign_stop(KEY, name="echo", workload_id="id", now=NOW))
    assert stop.workload_id == "id"
    validate_stop(stop, deploy, "id")
    with pytest.raises(ClaimsError, match="workload of another id"):
        validate_stop(stop, deploy, "other")


def test_claims_for_a_deploy_stop_nothing_and_those_for_a_stop_deploy_nothing() -> None:
    deploy = decode(DEPLOY)
    another_deploy = decode(sign_deploy(KEY, name="echo", hash="", now=NOW + 7))
    with pytest.raises(ClaimsError, match=CLONED):
        validate_stop(another_deploy, deploy, "id")
    with pytest.raises(ClaimsError, match="signed to stop"):
        validate_deploy(decode(sign_stop(KEY, name="echo", workload_id="id", now=NOW)), NOW)


def test_two_stops_of_one_second_differ_by_id() -> None:
    one, other = (decode(sign_stop(KEY, name="echo", workload_id=w, now=NOW)) for w in ("a", "b"))
    assert one.jti == other.jti
    assert one.text_digest != other.text_digest


@given(st.binary(max_size=50))
def test_base64url_has_one_spelling_for_each_bytes(data: bytes) -> None:
    assert decode_base64url(encode_base64url(data)) == data


@pytest.mark.parametrize("text", ["A", "AB", "AAB", "AA=="])
def test_base64url_with_spare_bits_or_padding_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="illegal base64 data"):
        decode_base64url(text)


@pytest.mark.parametrize(
    ("text", "position"),
    [("a", 0), ("abcdef", 4), ("ab=", 3), ("a=", 1), ("ab==c", 4), ("ab=c", 3), ("abcd=", 4), ("ab-d", 2)],
)
def test_base64_says_where_it_ends_being_that(text: str, position: int) -> None:
    with pytest.raises(ValueError, match=f"at input byte {position}$"):
        decode_base64(text)


def test_the_jwt_of_a_key_names_its_issuer() -> None:
    standard, data = jwt.decode(jwt.encode(KEY, jwt.Standard(sub="s", iss="ignored"), {"x": 1}), dict[str, int])
    assert (standard.iss, standard.sub, data) == (KEY.public, "s", {"x": 1})
