"""The control API's messages: Go's bytes, tolerance, and nothing but a clear error for the rest."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import golden_messages as golden
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nex.errors import MessageError, RefusedError, UsageError
from nex.protocol.base import Message
from nex.protocol.control import (
    AUCTION_RESPONSE,
    DEPLOY_RESPONSE,
    INFO_RESPONSE,
    LAMEDUCK_RESPONSE,
    PING_RESPONSE,
    STOP_RESPONSE,
    AuctionRequest,
    DeployReply,
    DeployRequest,
    Envelope,
    InfoReply,
    LameduckReply,
    LameduckRequest,
    Machine,
    MachineWorkload,
    PingReply,
    StopReply,
    StopRequest,
    WorkloadPingReply,
)
from nex.protocol.location import Location

REQUESTS: list[type[Message]] = [AuctionRequest, DeployRequest, StopRequest, LameduckRequest]
REPLIES: list[type[Message]] = [PingReply, WorkloadPingReply, InfoReply, DeployReply, StopReply, LameduckReply]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = sorted({name for cls in (*REQUESTS, *REPLIES) for name in cls.__struct_fields__} | {"data", "error", "Path"})
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON))


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        (DeployRequest, golden.DEPLOY),
        (DeployRequest, golden.DEPLOY_MINIMAL),
        (StopRequest, golden.STOP),
        (AuctionRequest, golden.AUCTION),
        (Location, golden.LOCATION_WITH_USER),
        (Location, golden.LOCATION_UNDERSCORES),
    ],
)
def test_requests_of_go_are_read_and_written_byte_for_byte(cls: type[Message], data: bytes) -> None:
    assert cls.decode(data).encode() == data


@pytest.mark.parametrize(
    ("cls", "kind", "data"),
    [
        (DeployReply, DEPLOY_RESPONSE, golden.DEPLOY_REPLY),
        (PingReply, PING_RESPONSE, golden.PING_REPLY),
        (WorkloadPingReply, PING_RESPONSE, golden.WPING_REPLY),
        (InfoReply, INFO_RESPONSE, golden.INFO_REPLY),
        (InfoReply, INFO_RESPONSE, golden.INFO_REPLY_EMPTY),
        (LameduckReply, LAMEDUCK_RESPONSE, golden.LAMEDUCK_REPLY),
    ],
)
def test_replies_of_go_are_read_and_written_byte_for_byte(cls: type[Message], kind: str, data: bytes) -> None:
    assert Envelope.ok(kind, Envelope.open(data, cls)) == data


def test_a_failure_is_that_of_go() -> None:
    assert Envelope.fail(STOP_RESPONSE, "No such workload") == golden.FAIL_ENVELOPE
    with pytest.raises(RefusedError, match=r"^No such workload$") as caught:
        Envelope.open(golden.FAIL_ENVELOPE, StopReply, node_id="N")
    assert caught.value.node_id == "N"


def test_the_fields_of_a_deploy_of_go() -> None:
    request = DeployRequest.decode(golden.DEPLOY)
    assert (request.type, request.trigger_subjects) == ("v8", ("helloworld",))
    assert (request.location.bucket, request.location.key) == ("NEXCLIFILES", "echofunctionjs")
    assert str(request.location) == "nats://NEXCLIFILES/echofunctionjs"
    assert (request.timeout_ms, request.memory_mib, request.parallel) == (0, 0, 0)


def test_a_stop_reply_and_an_auction_reply() -> None:
    stop = StopReply(stopped=True, id="i", issuer="A", name="n")
    expected = b'{"type":"io.nats.nex.v1.stop_response","data":{"stopped":true,"id":"i","issuer":"A","name":"n"}}'
    assert Envelope.ok(STOP_RESPONSE, stop) == expected
    assert AUCTION_RESPONSE == "io.nats.nex.v1.auction_response"


@pytest.mark.parametrize("field", ["type", "location", "workload_jwt", "environment", "sender_public_key"])
@pytest.mark.parametrize("how", ["missing", "null", "number"])
def test_a_deploy_without_what_it_needs_names_the_field(field: str, how: str) -> None:
    raw = json.loads(golden.DEPLOY)
    if how == "missing":
        del raw[field]
    else:
        raw[field] = None if how == "null" else 7
    with pytest.raises(MessageError, match=f"[`.]{field}`"):
        DeployRequest.decode(json.dumps(raw).encode())


@pytest.mark.parametrize("field", ["description", "essential", "jsdomain", "target_node", "argv", "trigger_subjects"])
@pytest.mark.parametrize("how", ["missing", "null"])
def test_a_deploy_goes_without_the_rest(field: str, how: str) -> None:
    raw = json.loads(golden.DEPLOY)
    raw[field] = None
    if how == "missing":
        del raw[field]
    assert not getattr(DeployRequest.decode(json.dumps(raw).encode()), field)


@pytest.mark.parametrize(
    ("location", "bucket", "key"),
    [
        ({"Scheme": "nats", "Host": "A", "Path": "/b"}, "A", "b"),
        ({"scheme": "nats", "host": "A", "path": "/b/"}, "A", "b"),
        ({"HOST": "A", "path": "a/b", "User": {}, "Unknown": 1}, "A", "a/b"),
        ("nats://A/b", "A", "b"),
        ("nats://My_Bucket/some/nested/key", "My_Bucket", "some/nested/key"),
        ("nats://A/with%20space", "A", "with space"),
    ],
)
def test_a_location_is_an_object_or_a_url(location: object, bucket: str, key: str) -> None:
    raw = {**json.loads(golden.DEPLOY), "location": location}
    found = DeployRequest.decode(json.dumps(raw).encode()).location
    assert (found.bucket, found.key) == (bucket, key)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "A/b",
        "nats://",
        "nats://A",
        "nats://A/",
        "nats:///b",
        "http://A/b",
        "nats://BUCKET NAME/key",
        "nats://a.b/c",
    ],
)
def test_urls_that_are_no_location(url: str) -> None:
    with pytest.raises(UsageError, match="nats://BUCKET/KEY"):
        Location.from_url(url)
    raw = {**json.loads(golden.DEPLOY), "location": url}
    with pytest.raises(MessageError, match="nats://BUCKET/KEY"):
        DeployRequest.decode(json.dumps(raw).encode())


def test_a_location_is_written_with_all_keys_of_go() -> None:
    written = Location.of("My_Bucket", "key").encode()
    assert written == golden.LOCATION_UNDERSCORES
    assert Location.from_url("nats://My_Bucket/key").encode() == written
    url = "nats://user:secret@BUCKET/some/nested/key?x=1#frag"
    assert Location.from_url(url).encode() == golden.LOCATION_WITH_USER
    assert str(Location.of("A", "a/b c")) == "nats://A/a/b%20c"


def test_our_own_fields_are_optional_and_bounded() -> None:
    request = DeployRequest.decode(golden.DEPLOY[:-1] + b',"timeout_ms":250,"memory_mib":64,"parallel":4}')
    assert (request.timeout_ms, request.memory_mib, request.parallel) == (250, 64, 4)
    assert request.encode().endswith(b'"timeout_ms":250,"memory_mib":64,"parallel":4}')
    share = b',"cpus":2,"total_memory_mib":128,"pids":64,"disk_mib":32}'
    request = DeployRequest.decode(golden.DEPLOY[:-1] + share)
    assert (request.cpus, request.total_memory_mib, request.pids, request.disk_mib) == (2.0, 128, 64, 32)
    assert request.encode().endswith(share.replace(b":2,", b":2.0,"))
    for wrong in (b"-1", b"1.5", b'"4"', b"4294967296", b"true"):
        with pytest.raises(MessageError, match=r"\$\.parallel"):
            DeployRequest.decode(golden.DEPLOY[:-1] + b',"parallel":' + wrong + b"}")


def test_our_own_fields_of_a_machine_are_left_out_when_unknown() -> None:
    machine = Machine(id="i", workload=MachineWorkload(name="n"))
    assert b"driver" not in machine.encode()
    told = Machine(id="i", workload=MachineWorkload(name="n"), driver="process", cpu_seconds=0.0, memory_bytes=0)
    assert told.encode().endswith(b'"driver":"process","cpu_seconds":0.0,"memory_bytes":0}')
    told = Machine(id="i", workload=MachineWorkload(name="n"), received_bytes=0, sent_bytes=1)
    assert told.encode().endswith(b'"received_bytes":0,"sent_bytes":1}')
    assert Machine.decode(told.encode()) == told


@pytest.mark.parametrize("cls", [AuctionRequest, LameduckRequest])
@pytest.mark.parametrize("body", [b"", b"null", b" \n", b"{}"])
def test_an_empty_body_asks_for_nothing_in_particular(cls: type[Message], body: bytes) -> None:
    assert cls.decode(body) == cls()


def test_an_auction_tells_false_from_unasked() -> None:
    assert AuctionRequest.decode(b'{"sandboxed":false}').sandboxed is False
    assert AuctionRequest(sandboxed=False).encode() == b'{"sandboxed":false}'
    assert AuctionRequest().encode() == b"{}"


def test_lameduck_with_force() -> None:
    assert LameduckRequest(force=True).encode() == b'{"force":true}'
    assert LameduckRequest.decode(b'{"force":true}').force


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no data for envelope"),
        (b"null", "Expected `object`"),
        (b"{}", "Expected `object`, got `null`"),
        (b'{"data":""}', "Expected `object`, got `str`"),
        (b"\xff", "invalid"),
    ],
)
def test_what_is_no_reply(data: bytes, why: str) -> None:
    with pytest.raises(MessageError, match=why):
        Envelope.open(data, PingReply)


@pytest.mark.parametrize(
    ("error", "text"), [('""', ""), ('"x"', "x"), ("5", "5"), ('{"a":1}', '{"a":1}'), ("false", "false")]
)
def test_any_error_is_a_refusal(error: str, text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Envelope.open(f'{{"data":{{}},"error":{error}}}'.encode(), PingReply)
    assert caught.value.reason == text


def test_a_null_error_is_none() -> None:
    reply = Envelope.open(b'{"data":{"node_id":"N","success":true},"error":null}', LameduckReply)
    assert reply == LameduckReply(node_id="N", success=True)


@pytest.mark.parametrize("cls", REQUESTS + REPLIES)
@settings(max_examples=settings().max_examples * 3 // 10)
@given(data=st.binary(max_size=60))
def test_any_bytes_give_a_message_or_a_message_error(cls: type[Message], data: bytes) -> None:
    only_message_errors(cls, data)


@pytest.mark.parametrize("cls", REQUESTS + REPLIES)
@settings(max_examples=settings().max_examples * 3 // 10)
@given(value=OBJECTS | JSON)
def test_any_json_gives_a_message_or_a_message_error(cls: type[Message], value: Any) -> None:
    only_message_errors(cls, json.dumps(value).encode())


@given(changes=OBJECTS)
def test_a_deploy_with_any_fields_changed_gives_a_message_or_a_message_error(changes: dict[str, Any]) -> None:
    only_message_errors(DeployRequest, json.dumps({**json.loads(golden.DEPLOY), **changes}).encode())


@pytest.mark.parametrize("cls", REQUESTS + REPLIES)
@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"data":' * 50_000, b'{"id":"\xff"}', b'{"type":"\\ud800x"}'])
def test_hostile_json_gives_a_message_error(cls: type[Message], data: bytes) -> None:
    with pytest.raises(MessageError):
        cls.decode(data)
    only_message_errors(cls, data)


def test_secrets_do_not_show() -> None:
    request = DeployRequest.decode(golden.DEPLOY_MINIMAL.replace(b'"nats_user_seed":"s"', b'"nats_user_seed":"SUHUSH"'))
    for secret in (request.workload_jwt, request.environment, "SUHUSH"):
        assert secret not in repr(request)
    stop = StopRequest.decode(golden.STOP)
    assert stop.workload_jwt not in repr(stop)


def only_message_errors(cls: type[Message], data: bytes) -> None:
    try:
        message = cls.decode(data)
    except MessageError:
        pass
    else:
        assert cls.decode(message.encode()) == message
        repr(message)
    with contextlib.suppress(MessageError, RefusedError):
        Envelope.open(data, cls)
