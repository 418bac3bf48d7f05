"""The authority of a node's private server: who may connect to it, and what each may say and hear.

The server runs in operator mode with keys made in memory when the node starts and never kept: the node signs one user
per connection, and the server learns of users from their own JWTs, so none needs a reload. There are three accounts,
which share nothing: ``system`` is the server's own, ``plane`` is for the node and its agents and is joined to nothing,
``data`` is the one that a leaf connection joins to the public system, where triggers live.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nex.security import jwt
from nex.security.keys import SigningKey
from nex.security.users import (
    SPARE_SUBSCRIPTIONS,
    UNLIMITED,
    VERSION,
    check_words,
    permissions,
    sign_user,
    trigger_permissions,
)

__all__ = ["LeafRemote", "PlaneAuthority"]

_CONTROL_LINE_BYTES: Final = 1024 * 1024
_AUTHORIZATION_S = 30.0  # machines that are emulated, many at a time, take seconds to answer the server
"""A user's JWT, which names all that it may hear, has to fit, and a subject of a public server behind ours."""

_AGENT_SUBSCRIPTIONS: Final = 256 + SPARE_SUBSCRIPTIONS
"""One for each trigger that a function may have, and what an agent needs for itself."""

# The rules of nex.protocol.agent, which this room may not import; a test holds the two together.
_AGENT_PUBLISHES: Final = ("host.{id}.>",)
_AGENT_HEARS: Final = ("agent.{id}.>", "_INBOX.{id}.>")


@dataclass(frozen=True, slots=True)
class LeafRemote:
    """The public system that the data account joins as a leaf node: its leaf URLs and a credentials file, if any."""

    urls: tuple[str, ...]
    credentials: Path | None = None

    @property
    def is_on_this_host(self) -> bool:
        """Whether every URL is of the loopback interface."""
        return all(_is_loopback(url) for url in self.urls)


class PlaneAuthority:
    """Signs the accounts of one run of a private server, and its users. Its repr shows no seed."""

    def __init__(self, operator: SigningKey, system: SigningKey, plane: SigningKey, data: SigningKey) -> None:
        self._operator = operator
        self._system = system
        self._plane = plane
        self._data = data

    @classmethod
    def create(cls) -> PlaneAuthority:
        """An authority with new keys."""
        operator = SigningKey.create("operator")
        return cls(operator, *(SigningKey.create("account") for _ in range(3)))

    def server_config(self, *, leaf: LeafRemote | None = None, max_payload: int, data_payload: int = 0) -> str:
        """The complete configuration of the private nats-server, as text. It holds no secret but the URLs of ``leaf``.

        Args:
            leaf: the public system to join, if any.
            max_payload: the largest message, in bytes.
            data_payload: the largest that an agent may send to the public system, which ends a leaf connection by which
                more comes than it takes; 0 is ``max_payload``.
        """
        accounts = {"system": self._system, "plane": self._plane, "data": self._data}
        payloads = {"data": data_payload or max_payload}
        preload = {
            key.public: self._account(name, key, payloads.get(name, UNLIMITED)) for name, key in accounts.items()
        }
        settings: dict[str, Any] = {
            "listen": "127.0.0.1:-1",
            "operator": self._sign_operator(),
            "system_account": self._system.public,
            "resolver": "MEMORY",
            "resolver_preload": preload,
            "max_payload": max_payload,
            "max_control_line": _CONTROL_LINE_BYTES,
            "authorization": {"timeout": _AUTHORIZATION_S},
        }
        if leaf is not None:
            settings["leafnodes"] = {"remotes": [self._remote(leaf)]}
        # JSON is a subset of the server's configuration language: every value is quoted as it has to be.
        return "".join(f"{name}: {_value(name, value)}\n" for name, value in settings.items())

    def node_user(self) -> tuple[str, str]:
        """JWT and seed of the node itself, in the account ``plane``; it may say and hear everything there."""
        return self._user(self._plane, "node", {})

    def system_user(self) -> tuple[str, str]:
        """JWT and seed of a user in the account ``system``, who hears of connections and may end them."""
        return self._user(self._system, "system", {})

    def agent_user(self, machine_id: str) -> tuple[str, str]:
        """JWT and seed of the agent in a machine.

        It may publish to ``host.<m>.>`` and answer requests, and hear ``agent.<m>.>`` and ``_INBOX.<m>.>``. The server
        does not look at where an agent wants its answers: the node has to send none but to ``_INBOX.<m>.>``, or it
        would speak for the agent wherever that likes.
        """
        check_words(machine_id)
        publishes = [subject.format(id=machine_id) for subject in _AGENT_PUBLISHES]
        hears = [subject.format(id=machine_id) for subject in _AGENT_HEARS]
        return self._user(self._plane, f"agent-{machine_id}", permissions(publishes, hears, _AGENT_SUBSCRIPTIONS))

    def data_user(
        self, machine_id: str, subscriptions: Iterable[tuple[str, str]], *, denied: Iterable[str] = ()
    ) -> tuple[str, str]:
        """JWT and seed of a machine's user in the account ``data``, with the rights of `trigger_permissions`."""
        return self._user(self._data, f"data-{machine_id}", trigger_permissions(subscriptions, denied))

    def __repr__(self) -> str:
        return f"PlaneAuthority({self._operator.public})"

    def _sign_operator(self) -> str:
        body = {"type": "operator", "version": VERSION, "system_account": self._system.public}
        return _sign(self._operator, self._operator.public, "nex", body)

    def _account(self, name: str, key: SigningKey, payload: int) -> str:
        unlimited = ("subs", "data", "imports", "exports", "conn", "leaf")
        bounds = {"payload": payload, "wildcards": True, "mem_storage": 0, "disk_storage": 0}
        limits = {**dict.fromkeys(unlimited, UNLIMITED), **bounds}
        body = {"type": "account", "version": VERSION, "limits": limits}
        return _sign(self._operator, key.public, name, body)

    def _user(self, account: SigningKey, name: str, rights: dict[str, Any]) -> tuple[str, str]:
        return sign_user(account, name, rights)

    def _remote(self, leaf: LeafRemote) -> dict[str, Any]:
        remote: dict[str, Any] = {"urls": list(leaf.urls), "account": self._data.public}
        if leaf.is_on_this_host:
            remote["compression"] = "off"  # "s2_auto" frames what it leaves as it is: a fifth of the CPU of 1 MiB
        if leaf.credentials is not None:
            remote["credentials"] = str(leaf.credentials)
        return remote


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no URL
        return False


def _sign(key: SigningKey, subject: str, name: str, body: dict[str, Any]) -> str:
    return jwt.encode(key, jwt.Standard(sub=subject, name=name, iat=int(time.time())), body)


def _value(name: str, value: object) -> str:
    # The resolver's name is a bare word of the language.
    return str(value) if name == "resolver" else json.dumps(value, ensure_ascii=False)
