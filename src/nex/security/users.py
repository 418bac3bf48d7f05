"""Users of NATS accounts: signed here, each with what it may say and hear.

Whoever signs for the account that triggers are in, be it a private server's or the public system's, gives a function's
machine the same rights: those of `trigger_permissions`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nex.security import jwt
from nex.security.keys import SigningKey

__all__ = [
    "SPARE_SUBSCRIPTIONS",
    "UNLIMITED",
    "VERSION",
    "UserSigner",
    "check_words",
    "permissions",
    "sign_user",
    "trigger_permissions",
]

UNLIMITED: Final = -1
VERSION: Final = 2
"""Of the claims in a JWT."""

SPARE_SUBSCRIPTIONS: Final = 64
"""What an agent needs for itself (requests, replies, pings), and then some; more would only fill the server."""

_REPLY_TTL_NS: Final = 60 * 60 * 1_000_000_000
"""How long after a request an agent may answer it. Calls have limits of their own, which are shorter."""

_NOTHING: Final = "_NOTHING"
"""A subject that nobody uses."""

_NEVER_HEARD: Final = ("$SYS.>", "$JS.>", "$NEX.>")


class UserSigner:
    """Signs users of an account of the public system for the machines of functions. Its repr shows no seed.

    Args:
        key: of the account, or one that signs for it.
        account: its public key; needed where ``key`` is not its own.
    """

    def __init__(self, key: SigningKey, account: str = "") -> None:
        self._key = key
        self.account = account or key.public

    def user(
        self,
        machine_id: str,
        subscriptions: Iterable[tuple[str, str]],
        *,
        denied: Iterable[str] = (),
        life_s: float = 0,
    ) -> tuple[str, str]:
        """JWT and seed of a machine's user, with the rights of `trigger_permissions`.

        It is good for ``life_s`` seconds; without that, for as long as the account is.

        It may connect as a client does: as no leaf node, and over no other protocol.
        """
        check_words(machine_id)
        rights = {**trigger_permissions(subscriptions, denied), "allowed_connection_types": ["STANDARD"]}
        if self.account != self._key.public:
            rights["issuer_account"] = self.account
        return sign_user(
            self._key, f"nex-{machine_id}", rights, expires=math.ceil(time.time() + life_s) if life_s else 0
        )

    def __repr__(self) -> str:
        return f"UserSigner({self.account})"


def sign_user(account: SigningKey, name: str, rights: Mapping[str, Any], *, expires: int = 0) -> tuple[str, str]:
    """JWT and seed of a new user; without ``expires`` (Unix seconds) it is good for as long as the account is."""
    user = SigningKey.create("user")
    unlimited = dict.fromkeys(("subs", "data", "payload"), UNLIMITED)
    body = {"type": "user", "version": VERSION, **unlimited, **rights}
    standard = jwt.Standard(sub=user.public, name=name, iat=int(time.time()), exp=expires)
    return jwt.encode(account, standard, body), user.seed()


def trigger_permissions(subscriptions: Iterable[tuple[str, str]], denied: Iterable[str] = ()) -> dict[str, Any]:
    """To hear these subjects, each in its queue group (if not empty), and to answer; nothing else.

    What is ``denied``, and what belongs to the system, is never heard: no subscription may be about any of that.

    Raises:
        ValueError: there is white space in a word.
    """
    denied = tuple(denied)
    check_words(*denied)
    hears = []
    for subject, queue in subscriptions:
        check_words(subject, queue)
        hears.append((subject, f"{subject} {queue}" if queue else subject))
    rights = permissions([], [entry for _, entry in hears], len(hears) + SPARE_SUBSCRIPTIONS)
    rights["sub"]["deny"] = [*_NEVER_HEARD, *denied, *_overreach([subject for subject, _ in hears])]
    return rights


def permissions(publish: list[str], subscribe: list[str], max_subscriptions: int) -> dict[str, Any]:
    """To publish and to hear these, and to answer once what was asked; an empty list is nothing at all."""
    # An empty list would allow everything.
    return {
        "pub": {"allow": publish or [_NOTHING]},
        "sub": {"allow": subscribe or [_NOTHING]},
        "resp": {"max": 1, "ttl": _REPLY_TTL_NS},
        "subs": max_subscriptions,
    }


def check_words(*words: str) -> None:
    """In a permission, a space separates a subject from its queue group.

    Raises:
        ValueError: there is white space in one.
    """
    if any(char.isspace() for word in words for char in word):
        raise ValueError("white space in a subject, a queue group or a machine id")


def _overreach(subjects: list[str]) -> list[str]:
    """What the server would let be heard beyond the subjects that are allowed.

    To it, ``a.>`` is covered by an allowed ``a.*``. Where that is not needed for another subject, what lies deeper
    is denied.
    """
    ends = [subject for subject in subjects if subject.split(".")[-1] == "*"]
    return [f"{end}.>" for end in ends if not any(_goes_below(subject, end) for subject in subjects)]


def _goes_below(subject: str, end: str) -> bool:
    theirs, ours = subject.split("."), end.split(".")
    for one, other in zip(theirs, ours, strict=False):
        if one == ">":
            return True
        if one != other and "*" not in (one, other):
            return False
    return len(theirs) > len(ours)
