"""Users of the public system for the agents of functions, signed by the node: nobody stands between the two then.

An operator who runs the public system with JWTs can give a node a key that signs for an account. Each function's agent
is a user of that account for a while: it hears its own triggers and answers. Before the time of one is over, there is
the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable

from nex.drivers.base import Dial, Driver
from nex.errors import NexError, UnreachableError, UsageError
from nex.node.agents import AgentLink
from nex.node.config import WorkloadUsers
from nex.protocol.agent import PublicUser
from nex.protocol.ids import new_id
from nex.security.keys import SigningKey, exposure, read_seed
from nex.security.users import UserSigner
from nex.telemetry.logs import Log
from nex.transport.connection import Connection
from nex.transport.dial import dial
from nex.transport.options import ConnectOptions

__all__ = ["PublicUsers", "read_signer"]

_log = Log("node.users")
_LIFE_S = 3600.0
"""How long a user is good. What leaks from a machine is of no use for longer; half of it is enough for a public system
that is away, and for a host whose clock is minutes off."""
_TRIES = 60
"""How often in its life another is tried to be given to an agent that could not take it."""
_JWT_BYTES = 3600
"""How long a user's JWT may be, which is some 50 triggers: servers take no line of more than 4096 bytes unless they are
told to, and a CONNECT says some more."""
_TIMEOUT_S = 30.0
_PATIENCE_S = 5.0
_WATCH_EVERY_S = 60.0
_REMEDY = (
    "check that workload_users.account is the account for which the key in workload_users.signing_seed_file signs, "
    "that the key has no role of its own, and that the public system knows both"
)


class PublicUsers:
    """Signs and renews them. ``is_up`` decides how the next workload gets its messages.

    Args:
        signer: of the account.
        public: how the node reaches the public system. Its servers and whom they are trusted by are told to machines,
            its credentials are not.
        streams: machines have nothing but streams: on that for data, the node says who they are before it is joined.
        denied: subjects that no machine may hear.
    """

    def __init__(
        self, signer: UserSigner, public: ConnectOptions, *, streams: bool = False, denied: Iterable[str] = ()
    ) -> None:
        self._signer = signer
        self._public = public
        self._streams = streams
        self._hears: dict[str, Collection[tuple[str, str]]] = {}
        self._denied = tuple(denied)
        self._said: str | None = None
        self.is_up = False

    @classmethod
    async def of(
        cls, config: WorkloadUsers, public: ConnectOptions, driver: Driver, *, denied: Iterable[str]
    ) -> PublicUsers | None:
        """As the configuration has it; None, and the log says why, where machines could not connect as such users.

        Raises:
            NexError: the file holds no seed of an account, or cannot be read.
        """
        if config.signing_seed_file is None:
            return None
        signer = await asyncio.to_thread(read_signer, config)
        if warning := exposure(config.signing_seed_file):
            _log.warn("key_exposed", warning)
        if why := _obstacle(public, driver):
            _log.warn("users_left", f"workload_users is not used, triggers come by leaf node or bridge: {why}")
            return None
        return cls(signer, public, streams=not driver.capabilities.shares_host, denied=denied)

    def sign(self, machine_id: str, subscriptions: Iterable[tuple[str, str]]) -> PublicUser:
        """A new user who may hear these (subject, queue group), and answer."""
        jwt, seed = self._signer.user(machine_id, subscriptions, denied=self._denied, life_s=_LIFE_S)
        ca = self._public.tls_ca
        return PublicUser(
            servers=self._public.addresses,
            jwt=jwt,
            seed=seed,
            tls_ca=str(ca.expanduser().absolute()) if ca is not None else "",
            tls_first=self._public.tls_first,
        )

    def fits(self, subscriptions: Iterable[tuple[str, str]]) -> bool:
        """Whether a server takes a user who may hear all these (subject, queue group)."""
        jwt, _ = self._signer.user(new_id(), subscriptions, denied=self._denied, life_s=_LIFE_S)
        return len(jwt) <= _JWT_BYTES

    def admit(self, machine_id: str, subscriptions: Collection[tuple[str, str]]) -> PublicUser | None:
        """Let a machine hear these (subject, queue group): as the user that is returned.

        None is for a machine that has a data stream: whoever it is joined to knows it as a new user already, whose seed
        is kept nowhere. `forget` it when that has been joined, or will not be.
        """
        if not self._streams:
            return self.sign(machine_id, subscriptions)
        self._hears[machine_id] = subscriptions
        return None

    def forget(self, machine_id: str) -> None:
        """The data stream of that machine is not to be joined to the public system any more."""
        self._hears.pop(machine_id, None)

    def dialer(self, machine_id: str) -> Dial | None:
        """Connects the data stream of a machine to the public system, if that machine was admitted."""

        async def dialed(protocol: asyncio.Protocol) -> bytes | None:
            if (hears := self._hears.pop(machine_id, None)) is None:
                return None
            jwt, seed = self._signer.user(machine_id, hears, denied=self._denied)
            return await dial(self._as_user(f"nex triggers of {machine_id}", jwt, seed), protocol)

        return dialed if self._streams else None

    def _as_user(self, name: str, jwt: str, seed: str) -> ConnectOptions:
        """How the node connects as somebody else."""
        public = self._public
        return ConnectOptions(
            servers=public.addresses,
            name=name,
            jwt=jwt,
            seed=seed,
            tls_ca=public.tls_ca,
            tls_cert=public.tls_cert,
            tls_key=public.tls_key,
            tls_first=public.tls_first,
            timeout_s=_PATIENCE_S,
        )

    async def keep(self, link: AgentLink, subscriptions: Collection[tuple[str, str]]) -> None:
        """Give the agent another user whenever half the life of one is over, until its machine has ended."""
        wait_s = _LIFE_S / 2
        while not await _is_lost_within(link, wait_s):
            wait_s = _LIFE_S / 2
            try:
                await link.renew(self.sign(link.id, subscriptions), _TIMEOUT_S)
            except NexError as error:
                wait_s = _LIFE_S / _TRIES
                if not link.lost.is_set():
                    text = f"an agent could not take another user of the public system: {error}"
                    _log.warn("user_not_renewed", text, machine=link.id)

    async def run(self) -> None:
        """Look whether the public system still takes them; ends only by cancellation."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            await self.check()

    async def check(self) -> bool:
        """Whether the public system takes a user who may do nothing. One that is away has not said no."""
        probe = self._as_user("nex node (probe)", *self._signer.user("probe", (), life_s=_LIFE_S))
        try:
            async with await Connection.open(probe):
                self.is_up = True
        except UnreachableError as error:
            self._say(f"the public system cannot be asked whether it takes {self._whom}: {error}")
        except NexError as error:
            self.is_up = False
            self._say(
                f"the public system does not take {self._whom}; triggers come by leaf node or bridge meanwhile: {error}"
            )
        else:
            self._say("")
        return self.is_up

    @property
    def _whom(self) -> str:
        return f"users that are signed here for account {self._signer.account}"

    def _say(self, trouble: str) -> None:
        """Tell the log, if it is news."""
        if trouble == self._said:
            return
        self._said = trouble
        if trouble:
            _log.warn("users_down", trouble, remedy=_REMEDY)
        else:
            account = self._signer.account
            text = f"functions hear their triggers on the public system itself, as users of account {account}"
            _log.info("users_up", text)


def read_signer(config: WorkloadUsers) -> UserSigner:
    """What signs them. Reads the file.

    Raises:
        NexError: the file holds no seed of an account, or cannot be read.
    """
    path = config.signing_seed_file
    if path is None:
        raise UsageError("workload_users.signing_seed_file is not set")
    key = SigningKey.from_seed(read_seed(path))
    if key.kind != "account":
        raise UsageError(
            f"{path} holds a key of kind {key.kind}, not account",
            hint="set workload_users.signing_seed_file to a file with a seed that begins with SA",
        )
    return UserSigner(key, config.account)


def _obstacle(public: ConnectOptions, driver: Driver) -> str:
    """Why machines cannot connect to the public system themselves; empty if they can."""
    if driver.capabilities.shares_host and public.tls_cert is not None:
        return "the node shows the public system a certificate of its own, which is not for machines"
    return ""


async def _is_lost_within(link: AgentLink, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await link.lost.wait()
    return link.lost.is_set()
