"""A NATS system in operator mode: its operator, an account for everybody, and a key that signs users of that."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from nex.security import jwt
from nex.security.keys import SigningKey
from nex.security.users import UNLIMITED, VERSION, sign_user
from nex.testing.servers import config_server
from nex.transport.server import NatsServer, public_config

__all__ = ["OperatorSystem"]


class OperatorSystem:
    """The keys of a system, which outlive its servers.

    Attributes:
        account: the identity of the account that users are in.
        signing: a key that signs for it, as an operator gives one to a node.
    """

    def __init__(self) -> None:
        self._operator = SigningKey.create("operator")
        self._system = SigningKey.create("account")
        self.account = SigningKey.create("account")
        self.signing = SigningKey.create("account")

    def config(self, *, port: int = -1, store_dir: Path, more: str = "") -> str:
        """The configuration of a server of this system, with JetStream and leaf nodes."""
        keys = {"signing_keys": [self.signing.public]}
        preload = {
            self._system.public: self._account(self._system, storage=0),
            self.account.public: self._account(self.account, storage=UNLIMITED, **keys),
        }
        operator = {"type": "operator", "version": VERSION, "system_account": self._system.public}
        return (
            public_config(port=port, store_dir=store_dir)
            + f"operator: {self._signed(self._operator, operator)}\n"
            + f"system_account: {self._system.public}\nresolver: MEMORY\n"
            + f"resolver_preload: {json.dumps(preload)}\n{more}"
        )

    @contextlib.asynccontextmanager
    async def server(self, *, port: int = -1, more: str = "") -> AsyncGenerator[NatsServer]:
        """A running server; ``more`` is added to its configuration."""
        with tempfile.TemporaryDirectory(prefix="nex-test-nats-") as name:
            async with config_server(self.config(port=port, store_dir=Path(name) / "data", more=more)) as server:
                yield server

    def credentials(self, path: Path) -> Path:
        """A credentials file of a user who may do anything in the account; the file is made with mode 0600."""
        token, seed = self.user()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(
                f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
                f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            )
        return path

    def user(self) -> tuple[str, str]:
        """JWT and seed of a user who may do anything in the account."""
        return sign_user(self.account, "everybody", {})

    def _account(self, key: SigningKey, *, storage: int, **more: object) -> str:
        unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "streams", "consumer")
        limits = {**dict.fromkeys(unlimited, UNLIMITED), "wildcards": True}
        limits |= {"mem_storage": storage, "disk_storage": storage}
        return self._signed(key, {"type": "account", "version": VERSION, "limits": limits, **more})

    def _signed(self, subject: SigningKey, body: Mapping[str, Any]) -> str:
        return jwt.encode(self._operator, jwt.Standard(sub=subject.public, name="nex", iat=int(time.time())), body)
