"""Turns what `ConnectOptions` names into what the NATS client asks for; every bad file is told before we connect."""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nex.errors import KeyFormatError, UsageError
from nex.security.keys import SigningKey
from nex.transport.options import ConnectOptions

__all__ = ["client_arguments", "needs_files", "read_creds"]

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s*(\S+)\s*-+END NATS USER JWT-+")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s*(\S+)\s*-+END USER NKEY SEED-+")


@dataclass(frozen=True)
class _User:
    """A user's JWT (empty for a bare nkey) and seed."""

    jwt: str = field(repr=False)
    seed: str = field(repr=False)

    def sign(self, nonce: str) -> bytes:
        return base64.b64encode(_key(self.seed).sign(nonce.encode()))


def read_creds(path: Path) -> tuple[str, str]:
    """The user JWT and the seed in a credentials file, as ``nsc`` writes it.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    user = _parse_creds(path, _read(path))
    return user.jwt, user.seed


def needs_files(options: ConnectOptions) -> bool:
    """Whether `client_arguments` reads files, so that a loop should call it in a thread."""
    return bool(options.creds or options.nkey or options.wants_tls)


def client_arguments(options: ConnectOptions) -> dict[str, Any]:
    """Give the NATS client's arguments for credentials and TLS.

    Raises:
        UsageError: two kinds of credentials at once, or a file that is missing, unreadable or malformed.
    """
    if options.greeting is not None:
        return {}  # it has been said; what the library says goes nowhere, and a signature would take its time
    arguments: dict[str, Any] = {}
    kinds = [
        name
        for name, given in (
            ("creds", options.creds),
            ("nkey", options.nkey),
            ("jwt and seed", options.jwt or options.seed),
            ("user", options.user),
            ("token", options.token),
        )
        if given
    ]
    if len(kinds) > 1:
        raise UsageError(f"more than one kind of credentials: {', '.join(kinds)}", hint="give one")
    if options.creds:
        arguments |= _signing(_from_file(options.creds, _parse_creds))
    elif options.nkey:
        arguments["nkeys_seed_str"] = _from_file(options.nkey, _parse_nkey)().seed
    elif options.jwt or options.seed:
        arguments |= _in_memory(options)
    elif options.user and not options.password:
        arguments["token"] = options.user  # as the nats command has it: a user without a password is a token
    elif options.user:
        arguments |= {"user": options.user, "password": options.password}
    elif options.token:
        arguments["token"] = options.token
    if options.wants_tls:
        arguments |= {"tls": _tls_context(options), "tls_handshake_first": options.tls_first}
    return arguments


def _in_memory(options: ConnectOptions) -> dict[str, Any]:
    if not options.seed:
        raise UsageError("a user JWT needs its seed")
    user = _User(options.jwt, options.seed.strip())
    _key(user.seed)
    return _signing(lambda: user) if user.jwt else {"nkeys_seed_str": user.seed}


def _signing(user: Callable[[], _User]) -> dict[str, Any]:
    def jwt() -> bytes:
        return user().jwt.encode()

    def sign(nonce: str) -> bytes:
        return user().sign(nonce)

    return {"user_jwt_cb": jwt, "signature_cb": sign}


def _from_file(path: Path, parse: Callable[[Path, str], _User]) -> Callable[[], _User]:
    """Read the file now, and again at each reconnect, so that renewed credentials are taken up; keep the last good."""
    last = parse(path, _read(path))

    def current() -> _User:
        nonlocal last
        try:
            last = parse(path, _read(path))
        except UsageError:
            return last  # being rewritten just now; the server will tell if the old one is no longer good
        return last

    return current


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text("utf-8")
    except OSError as error:
        raise UsageError(f"credentials file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"credentials file {path} is not a text file") from None


def _parse_creds(path: Path, text: str) -> _User:
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        missing = "user JWT" if jwt is None else "user seed"
        raise UsageError(f"credentials file {path} holds no {missing}", hint="expected a file as nsc writes it")
    _key(seed[1], where=str(path))
    return _User(jwt[1], seed[1])


def _parse_nkey(path: Path, text: str) -> _User:
    seed = next((line.strip() for line in text.splitlines() if line.strip().startswith("SU")), "")
    if not seed:
        raise UsageError(f"nkey file {path} holds no user seed", hint="expected a line that begins with SU")
    _key(seed, where=str(path))
    return _User("", seed)


def _key(seed: str, *, where: str = "the seed given") -> SigningKey:
    try:
        return SigningKey.from_seed(seed)
    except KeyFormatError:
        raise UsageError(f"{where} is not a valid nkey seed") from None


def _tls_context(options: ConnectOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(p) for p in (options.tls_ca, options.tls_cert, options.tls_key) if p)
        raise UsageError(f"TLS files cannot be used ({names}): {error.strerror or error}") from None
    if options.tls_key and not options.tls_cert:
        raise UsageError("a TLS key needs its certificate")
    return context
