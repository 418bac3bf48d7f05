"""The claims by which an issuer deploys and stops a workload.

A deploy names the workload (``sub``) and the SHA-256 of its artifact (``nats.hash``); a stop names the workload and, in
our own, the one workload id it is for (``nats.workload_id``). Stops of 0.2 clients carry no id: the node must remember
each by its ``text_digest`` and let it stop something only once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import msgspec

from nex.errors import ClaimsError
from nex.security import jwt
from nex.security.keys import SigningKey

__all__ = ["Claims", "decode", "sign_deploy", "sign_stop", "validate_deploy", "validate_stop"]

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_NAME_CHARS = 255

_CLONED = "stop claims appear to be cloned or captured from the original start claims. Rejecting for security reasons"


class _DeployData(msgspec.Struct):
    hash: str
    version: int = 2


class _StopData(msgspec.Struct, omit_defaults=True):
    version: int
    workload_id: str = ""


class _AnyData(msgspec.Struct):
    hash: str | None = None
    workload_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a verified JWT says. Times are Unix seconds; 0 is none.

    ``has_hash`` tells claims that were signed for a deploy (with whatever hash) from those for a stop;
    ``text_digest`` is the SHA-256 (hex) of the JWT, of which there is only one spelling.
    """

    name: str
    issuer: str
    issued_at: int
    jti: str
    expires_at: int
    not_before: int
    hash: str
    has_hash: bool
    workload_id: str
    text_digest: str


def sign_deploy(key: SigningKey, *, name: str, hash: str, now: float, expires_at: int = 0) -> str:  # noqa: A002 - its name on the wire
    """The JWT that lets a node run the artifact of this SHA-256 (hex) as workload ``name``.

    Args:
        key: the issuer's.
        name: the workload's.
        hash: SHA-256 of the artifact, lower-case hex.
        now: Unix seconds.
        expires_at: Unix seconds after which no node accepts it; 0 is never.
    """
    standard = jwt.Standard(sub=name, iat=int(now), exp=expires_at)
    return jwt.encode(key, standard, _DeployData(hash))


def sign_stop(key: SigningKey, *, name: str, workload_id: str, now: float) -> str:
    """The JWT that stops workload ``name`` with that id; an empty id makes one that 0.2 clients make."""
    return jwt.encode(key, jwt.Standard(sub=name, iat=int(now)), _StopData(2, workload_id))


def decode(token: str) -> Claims:
    """Read a JWT and verify its signature.

    Raises:
        ClaimsError: it does not decode or verify.
    """
    try:
        standard, data = jwt.decode(token, _AnyData)
    except ValueError as error:
        raise ClaimsError(f"could not decode workload JWT: {error}") from error
    return Claims(
        name=standard.sub,
        issuer=standard.iss,
        issued_at=standard.iat,
        jti=standard.jti,
        expires_at=standard.exp,
        not_before=standard.nbf,
        hash=data.hash or "",
        has_hash=data.hash is not None,
        workload_id=data.workload_id or "",
        text_digest=hashlib.sha256(token.encode()).hexdigest(),
    )


def validate_deploy(claims: Claims, now: float) -> None:
    """Check that claims may deploy at ``now`` (Unix seconds).

    Raises:
        ClaimsError: the name is none, it is not yet or no longer valid, or it was signed for a stop.
    """
    if not _NAME.fullmatch(claims.name):
        raise ClaimsError(f"workload name claim ('{claims.name}') does not match requirements (^[a-zA-Z0-9_-]+$)")
    if len(claims.name) > _NAME_CHARS:
        raise ClaimsError(f"workload name claim is longer than {_NAME_CHARS} characters")
    expired = claims.expires_at > 0 and int(now) > claims.expires_at
    if expired or claims.not_before > int(now):
        raise ClaimsError("standard claims within JWT are not valid")
    if claims.workload_id:
        raise ClaimsError("these claims were signed to stop a workload, not to deploy one")


def validate_stop(stop: Claims, deploy: Claims, workload_id: str) -> None:
    """Check that claims may stop the workload of that id, which was started by ``deploy``.

    Raises:
        ClaimsError: they are for another workload or issuer, or were signed for a deploy.
    """
    if stop.workload_id:
        if stop.workload_id != workload_id:
            raise ClaimsError("stop claims are for a workload of another id")
    elif stop.has_hash or stop.jti == deploy.jti or stop.issued_at == deploy.issued_at:
        raise ClaimsError(_CLONED)
    if stop.name != deploy.name:
        raise ClaimsError("stop claims subject does not match original start claims subject")
    if stop.issuer != deploy.issuer:
        raise ClaimsError("the only entity allowed to terminate a workload is the issuer that originally started it")
