"""Messages of workloads, on a real server."""

from __future__ import annotations

from nex.hostservices.base import Caller
from nex.hostservices.messaging import MessagingOptions, MessagingService
from nex.hostservices.router import Router
from nex.protocol.hostcalls import PIECE_BYTES, Answer, Publish, Request, StreamWrite
from nex.testing.hostservices_web_contract import MessagingContract
from nex.testing.servers import config_server
from nex.transport.connection import Connection
from nex.transport.options import ConnectOptions


class TestMessaging(MessagingContract):
    pass


async def test_what_the_server_does_not_allow_is_told() -> None:
    rules = "{ users: [{ user: u, password: p, permissions: { publish: [ok.>] } }] }"
    async with config_server(f"port: -1, authorization: {rules}") as server:
        options = ConnectOptions(servers=(server.client_url,), user="u", password="p")
        async with await Connection.open(options, on_event=lambda _: None) as connection:
            router = Router([MessagingService(MessagingOptions())])
            caller = Caller(workload_id="w1", namespace="ns", name="w", connection=connection, messaging=connection)
            session = router.session(caller)
            head, _ = await session.call(Request(subject="forbidden").encode(), b"")
            assert Answer.decode(head).error == "denied"
            head, _ = await session.call(Request(subject="ok.nobody").encode(), b"")
            assert Answer.decode(head).error == "unavailable"
            await connection.close()
            head, _ = await session.call(Publish(subject="ok.a").encode(), b"")
            assert Answer.decode(head).error == "unavailable"
            await router.aclose()


async def test_a_message_that_never_ends_does_not_fill_the_memory(connection: Connection) -> None:
    router = Router([MessagingService(MessagingOptions())])
    caller = Caller(workload_id="w1", namespace="ns", name="w", connection=connection, messaging=connection)
    session = router.session(caller)
    head, _ = await session.call(Publish(subject="a", streams=True).encode(), b"")
    stream, piece = Answer.decode(head).stream, bytes(PIECE_BYTES)
    taken = 0
    while not (answer := Answer.decode((await session.call(StreamWrite(stream=stream).encode(), piece))[0])).error:
        taken += len(piece)
        assert taken < 2 * connection.max_payload
    assert answer.error == "too_large"
    head, _ = await session.call(Publish(subject="$SYS.a", streams=True).encode(), b"")
    write = StreamWrite(stream=Answer.decode(head).stream).encode()
    while not (answer := Answer.decode((await session.call(write, piece))[0])).error:
        pass
    assert answer.error == "denied"
    await router.aclose()
