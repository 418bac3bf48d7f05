from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import RefusedError
from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.messaging import MessagingOptions
from nex.node.config import HostServices, NodeConfig, NodeLimits, WorkloadLimits
from nex.node.policy import Order, Rules, Target, check_hash, check_order, check_stop
from nex.protocol.control import Connections, DeployRequest, NatsConnection, StopRequest
from nex.protocol.location import Location
from nex.protocol.subjects import MAX_TRIGGERS
from nex.protocol.triggers import KvTrigger, ObjectTrigger, ScheduleTrigger, StreamTrigger
from nex.security.claims import decode, sign_deploy, sign_stop
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, seal_environment, seal_text

NOW = 1_800_000_000
HASH = hashlib.sha256(b"artifact").hexdigest()
ISSUER = SigningKey.create("account")
NODE = CurveKey.create()
NODE_ID = SigningKey.create("server").public
SENDER = CurveKey.create()


def rules(**changes: Any) -> Rules:
    return Rules(NodeConfig(name="one", state_dir=Path("/nowhere"), **changes), NODE, NODE_ID)


def request(**changes: Any) -> DeployRequest:
    plain = DeployRequest(
        type="v8",
        location=Location.of("BUCKET", "key"),
        workload_jwt=sign_deploy(ISSUER, name="echo", hash=HASH, now=NOW),
        environment=seal_environment({"A": "b"}, SENDER, NODE.public),
        sender_public_key=SENDER.public,
        trigger_subjects=("echo",),
    )
    return msgspec.structs.replace(plain, **changes)


def check(
    raw: DeployRequest | bytes, *, namespace: str | None = "default", now: float | None = NOW, **rest: Any
) -> Order:
    body = raw if isinstance(raw, bytes) else raw.encode()
    used = rest.pop("rules", None) or rules()
    return check_order(body, namespace=namespace, rules=used, now=now, **rest)


def refusal(*args: Any, **rest: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        check(*args, **rest)
    return str(caught.value)


def test_a_good_request_passes() -> None:
    raw = request(timeout_ms=100, memory_mib=16, parallel=2).encode()

    order = check(raw)

    assert (order.name, order.namespace, order.digest, order.is_function) == ("echo", "default", HASH, True)
    assert (order.limits.timeout_s, order.limits.memory_bytes, order.limits.parallel) == (0.1, 16 << 20, 2)
    assert order.raw == raw


# Each fails one check and every later one too: the first decides.
BAD = b"{"
CASES: list[tuple[dict[str, Any], str]] = [
    ({"namespace": None, "lameduck": True}, "Invalid subject for workload deployment"),
    ({"lameduck": True, "running": 9}, "Node is in lame duck mode. Workload deploy request denied"),
    ({"running": 2}, "Node is at maximum workload limit. Deploy request denied"),
    ({}, "Unable to deserialize deploy request: "),
]


@pytest.mark.parametrize(("situation", "text"), CASES)
def test_the_node_is_looked_at_before_the_request(situation: dict[str, Any], text: str) -> None:
    assert refusal(BAD, rules=rules(node_limits=NodeLimits(max_workloads=2)), **situation).startswith(text)


SPOILS: list[tuple[dict[str, Any], str]] = [
    ({"type": "oci"}, "Unsupported workload type on this node: oci"),
    ({"type": "native"}, "Unsupported workload type for trigger subject registration: native"),
    (
        {"trigger_subjects": ("private.>",)},
        "The trigger subject private.> overlaps with subject(s) in this node's deny list",
    ),
    ({"environment": "eA=="}, "Failed to decrypt environment for deploy request: nkeys: encrypted input is not valid"),
    ({"workload_jwt": "a.b"}, "Invalid deploy request: could not decode workload JWT: expected 3 chunks"),
    (
        {"workload_jwt": sign_deploy(SigningKey.create("account"), name="echo", hash="x", now=NOW)},
        "invalid workload issuer: A",
    ),
    ({"target_node": SigningKey.create("server").public}, "Invalid deploy request: it is for another node"),
    (
        {"workload_jwt": sign_deploy(ISSUER, name="echo", hash="abc12345TODOmakethisreal", now=NOW)},
        "Invalid deploy request: the hash in the claims is not a SHA-256",
    ),
    (
        {"timeout_ms": 60_001},
        "timeout_ms 60001 is outside this node's bounds of 1 to 60000 (workload_limits.max_timeout_ms)",
    ),
]


@pytest.mark.parametrize("index", range(len(SPOILS)))
def test_the_first_of_all_faults_is_told(index: int) -> None:
    spoiled: dict[str, Any] = {}
    for changes, _ in reversed(SPOILS[index:]):
        spoiled |= changes
    strict = rules(valid_issuers=(ISSUER.public,), deny_trigger_subjects=("private.*",))

    assert refusal(request(**spoiled), rules=strict).startswith(SPOILS[index][1])


@pytest.mark.parametrize("field", ["location", "workload_jwt", "environment", "sender_public_key", "type"])
@pytest.mark.parametrize("value", [None, 3, "missing"])
def test_what_crashed_older_nodes_is_a_refusal(field: str, value: object) -> None:
    body = json.loads(request().encode())
    if value == "missing":
        del body[field]
    else:
        body[field] = value

    assert refusal(json.dumps(body).encode()).startswith("Unable to deserialize deploy request: ")


@pytest.mark.parametrize(
    "subject",
    [">", "*.>", "*.foo", "$JS.API.x", "$NEX.PING", "$SYS.a", "$KV.a.>", "$O.*.M.x", "_INBOX.>", "_INBOX.x.*"],
)
def test_the_systems_own_subjects_are_always_denied(subject: str) -> None:
    assert "overlaps" in refusal(request(trigger_subjects=("ok", subject)))


def test_a_lone_star_is_allowed() -> None:
    assert check(request(trigger_subjects=("*",))).request.trigger_subjects == ("*",)


@pytest.mark.parametrize("subject", ["", "a..b", "a b", ".a", "a.", ">.a", "a\r\nPUB x 0"])
def test_a_trigger_that_is_no_subject_is_refused(subject: str) -> None:
    assert "is no subject" in refusal(request(trigger_subjects=(subject,)))


def test_there_is_an_end_to_triggers() -> None:
    many = tuple(f"t.{index}" for index in range(MAX_TRIGGERS + 1))

    assert check(request(trigger_subjects=many[1:])).request.trigger_subjects == many[1:]
    assert refusal(request(trigger_subjects=many)) == "A workload can have at most 256 trigger subjects"


@pytest.mark.parametrize("domain", ["a.b", "x API", ">", "*", "x" * 300])
def test_a_domain_cannot_lead_requests_elsewhere(domain: str) -> None:
    assert refusal(request(jsdomain=domain)).endswith("is no JetStream domain")
    assert check(request(jsdomain="hub-1")).request.jsdomain == "hub-1"


def test_arguments_that_no_process_can_have_are_refused() -> None:
    assert refusal(request(argv=("ok", "a\0b"))).startswith("argv holds a NUL character")


def test_a_request_for_this_node_by_name_passes() -> None:
    assert check(request(target_node=NODE_ID)).request.target_node == NODE_ID


def test_a_function_needs_a_trigger_and_each_only_once() -> None:
    assert "at least one trigger subject" in refusal(request(trigger_subjects=()))
    assert "twice" in refusal(request(trigger_subjects=("a", "a")))


ELSEWHERE = NatsConnection(nats_url="nats://elsewhere", nats_user_seed="SU-SECRET")
SEALED = seal_text(Connections(triggers=ELSEWHERE, issuer=ISSUER.public).encode(), SENDER, NODE.public)
TRUSTING = HostServices(allow_connections=("elsewhere:4222",))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"trigger_connection": ELSEWHERE}, "trigger_connection"),
        ({"host_services": ELSEWHERE}, "host_services"),
        ({"sealed_connections": SEALED}, "trigger_connection"),
    ],
)
def test_another_system_is_used_where_the_node_allows_it(asked: dict[str, Any], name: str) -> None:
    refused = refusal(request(**asked))
    assert refused.startswith(f"{name} is at elsewhere:4222, to which this node does not connect")
    assert "allow_connections" in refused
    taken = check(request(**asked), rules=rules(host_services=TRUSTING))
    assert ELSEWHERE in (taken.connections.host_services, taken.connections.triggers)
    assert "SECRET" not in repr(taken)


def test_a_sealed_system_wins_over_one_in_the_clear() -> None:
    clear = NatsConnection(nats_url="nats://clear")
    both = request(sealed_connections=SEALED, trigger_connection=clear)
    assert check(both, rules=rules(host_services=TRUSTING)).connections.triggers == ELSEWHERE


def test_connections_that_were_overheard_are_of_no_use() -> None:
    stranger = sign_deploy(SigningKey.create("account"), name="echo", hash=HASH, now=NOW)
    trusting = rules(host_services=TRUSTING)
    refused = refusal(request(sealed_connections=SEALED, workload_jwt=stranger), rules=trusting)
    assert "another issuer" in refused
    for_nobody = seal_text(Connections(triggers=ELSEWHERE).encode(), SENDER, NODE.public)
    assert "another issuer" in refusal(request(sealed_connections=for_nobody), rules=trusting)


@pytest.mark.parametrize(
    ("url", "told"),
    [("", "nats_url is empty"), ("http://x", "is none"), ("nats://x:99999", "is none"), ("nats://", "is none")],
)
def test_a_system_that_is_none_is_refused(url: str, told: str) -> None:
    sealed = seal_text(Connections(triggers=NatsConnection(nats_url=url)).encode(), SENDER, NODE.public)
    trusting = rules(host_services=HostServices(allow_connections=("*",)))
    assert told in refusal(request(sealed_connections=sealed), rules=trusting)


def test_sealed_connections_that_cannot_be_opened_are_refused_without_their_text() -> None:
    assert "Failed to decrypt connections" in refusal(request(sealed_connections="eA=="))
    damaged = seal_text(b'{"triggers": "SECRET"}', SENDER, NODE.public)
    refused = refusal(request(sealed_connections=damaged))
    assert "damaged" in refused
    assert "SECRET" not in refused


def test_connections_of_0_2_without_a_url_are_none() -> None:
    empty = NatsConnection(nats_user_seed="SU-SECRET")
    assert check(request(host_services=empty, trigger_connection=empty)).connections == Connections()


def test_bindings_are_for_the_default_namespace_unless_the_node_says_otherwise() -> None:
    bound = request(bindings={"kv:orders": "ORDERS", "objectstore:files": "FILES"})
    assert check(bound).request.bindings["kv:orders"] == "ORDERS"
    assert "allow_bindings" in refusal(bound, namespace="tenant")
    allowed = rules(host_services=HostServices(allow_bindings=("tenant/kv:ORD*", "tenant/objectstore:*")))
    assert check(bound, namespace="tenant", rules=allowed).namespace == "tenant"
    assert "allow_bindings" in refusal(bound, namespace="default", rules=allowed)


def test_with_credentials_of_its_own_a_workload_binds_what_these_allow() -> None:
    system = NatsConnection(nats_url="nats://elsewhere")
    bound = request(bindings={"kv:orders": "ORDERS"}, host_services=system)
    assert check(bound, namespace="tenant", rules=rules(host_services=TRUSTING)).request.bindings == bound.bindings


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        ({"orders": "ORDERS"}, "must be kv:NAME or objectstore:NAME"),
        ({"kv:": "ORDERS"}, "must be kv:NAME"),
        ({"kv:a.b": "ORDERS"}, "must be kv:NAME"),
        ({"queue:a": "ORDERS"}, "must be kv:NAME"),
        ({"kv:a": "A.B"}, "no bucket"),
        ({"kv:a": ""}, "no bucket"),
        ({"kv:a": "hs_default_other_kv"}, "another workload"),
        ({"objectstore:a": "NEXCLIFILES"}, "belongs to Nex"),
        ({f"kv:a{n}": "B" for n in range(65)}, "at most 64"),
    ],
)
def test_bindings_that_are_none_or_of_others_are_refused(bindings: dict[str, str], told: str) -> None:
    assert told in refusal(request(bindings=bindings))


def test_a_constant_hash_is_taken_only_where_the_key_allows_it() -> None:
    old = request(workload_jwt=sign_deploy(ISSUER, name="echo", hash="abc12345TODOmakethisreal", now=NOW))

    assert "allow_unverified_artifacts" in refusal(old)
    assert check(old, rules=rules(allow_unverified_artifacts=True)).digest == ""


def test_another_artifact_than_claimed_is_refused() -> None:
    check_hash(HASH, HASH, allow_unverified=False)
    check_hash("anything", HASH, allow_unverified=True)
    with pytest.raises(RefusedError, match="allow_unverified_artifacts"):
        check_hash("0" * 64, HASH, allow_unverified=False)


def test_expired_claims_are_refused_but_restored() -> None:
    old = request(workload_jwt=sign_deploy(ISSUER, name="echo", hash=HASH, now=NOW - 10, expires_at=NOW - 5))

    assert refusal(old) == "Invalid deploy request: standard claims within JWT are not valid"
    assert check(old, now=None).name == "echo"


def test_the_nodes_own_issuer_is_always_accepted() -> None:
    strict = rules(valid_issuers=(SigningKey.create("account").public,))

    assert refusal(request(), rules=strict) == f"invalid workload issuer: {ISSUER.public}"
    assert check(request(), rules=strict, own_issuer=ISSUER.public).name == "echo"


def test_a_service_gets_the_memory_of_a_machine() -> None:
    order = check(
        request(type="native", trigger_subjects=()), rules=rules(workload_limits=WorkloadLimits(memory_mib=64))
    )

    assert order.limits.memory_bytes == 256 << 20
    assert not order.is_function


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_do_more_than_get_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError):
        check(raw)


def test_secrets_stay_out_of_sight() -> None:
    order = check(request())

    assert order.request.environment not in repr(order)
    assert order.request.workload_jwt not in repr(order)


# Stopping

DEPLOYED = decode(sign_deploy(ISSUER, name="echo", hash=HASH, now=NOW))
TARGET = Target("id1", "default", DEPLOYED)


def stop(jwt: str, *, namespace: str = "default", against: str = "", node: str = "") -> str:
    request = StopRequest(workload_id="id1", workload_jwt=jwt, target_node=node)
    try:
        check_stop(request, TARGET, namespace=namespace, node_id=NODE_ID, objection=lambda _: against)
    except RefusedError as error:
        return str(error)
    return "stopped"


def test_claims_with_the_id_stop_at_any_time() -> None:
    assert stop(sign_stop(ISSUER, name="echo", workload_id="id1", now=NOW)) == "stopped"


@pytest.mark.parametrize(
    ("jwt", "text"),
    [
        ("x", "Invalid stop request: could not decode workload JWT: expected 3 chunks"),
        (
            sign_stop(ISSUER, name="echo", workload_id="", now=NOW),
            "Invalid stop request: stop claims appear to be cloned",
        ),
        (
            sign_stop(ISSUER, name="echo", workload_id="id2", now=NOW),
            "Invalid stop request: stop claims are for a workload",
        ),
        (
            sign_stop(ISSUER, name="other", workload_id="id1", now=NOW),
            "Invalid stop request: stop claims subject does not",
        ),
        (
            sign_stop(SigningKey.create("account"), name="echo", workload_id="id1", now=NOW),
            "Invalid stop request: the only entity allowed",
        ),
    ],
)
def test_claims_that_do_not_fit_stop_nothing(jwt: str, text: str) -> None:
    assert stop(jwt).startswith(text)


def test_claims_of_0_2_stop_one_thing_once() -> None:
    jwt = sign_stop(ISSUER, name="echo", workload_id="", now=NOW + 1)

    assert stop(jwt) == "stopped"
    assert stop(jwt, against="used before") == "Invalid stop request: used before"


def test_a_stop_for_another_node_stops_nothing() -> None:
    jwt = sign_stop(ISSUER, name="echo", workload_id="id1", now=NOW)

    assert stop(jwt, node=NODE_ID) == "stopped"
    assert stop(jwt, node="N") == "Invalid stop request: it is for another node"


def test_another_namespace_sees_nothing_but_only_after_the_claims() -> None:
    good = sign_stop(ISSUER, name="echo", workload_id="id1", now=NOW)

    assert stop(good, namespace="other") == "No such workload"
    assert stop("x", namespace="other").startswith("Invalid stop request: ")


def test_a_function_may_have_other_triggers_than_subjects() -> None:
    triggers = (StreamTrigger(stream="ORDERS"), ScheduleTrigger(every_ms=1000), KvTrigger(bucket="SHOP"))
    assert check(request(trigger_subjects=(), triggers=triggers)).request.triggers == triggers


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"type": "native", "trigger_subjects": ()}, "Unsupported workload type for trigger subject registration"),
        ({"triggers": (StreamTrigger(stream="A.B"),)}, "Invalid deploy request: 'A.B' is no name of a stream"),
        ({"triggers": (ScheduleTrigger(cron="soon"),)}, "'soon' is no cron expression"),
        ({"triggers": (StreamTrigger(stream="S", filters=("$NEX.logs.>",)),)}, "deny list"),
        ({"triggers": (StreamTrigger(stream="S", filters=("private.a",)),)}, "deny list"),
        ({"triggers": (KvTrigger(bucket="hs_other_fn_kv"),)}, "belongs to Nex or to another workload"),
        ({"triggers": (StreamTrigger(stream="KV_nex_schedules"),)}, "belongs to Nex or to another workload"),
        ({"triggers": (StreamTrigger(stream="OBJ_hs_other_fn_obj"),)}, "belongs to Nex or to another workload"),
    ],
)
def test_triggers_that_cannot_be_are_refused(changes: dict[str, Any], text: str) -> None:
    strict = rules(deny_trigger_subjects=("private.>",))
    plain: dict[str, Any] = {"triggers": (StreamTrigger(stream="ORDERS"),)}
    assert text in refusal(request(**plain | changes), rules=strict)


def test_only_buckets_that_may_be_bound_may_be_watched() -> None:
    watching = request(triggers=(KvTrigger(bucket="SHOP"),))
    assert "is not allowed in namespace team" in refusal(watching, namespace="team")
    lax = rules(host_services=HostServices(allow_bindings=("team/kv:SHOP",)))
    assert check(watching, namespace="team", rules=lax).namespace == "team"
    as_object = request(triggers=(ObjectTrigger(bucket="SHOP"),))
    assert "is not allowed" in refusal(as_object, namespace="team", rules=lax)


@pytest.mark.parametrize("rule", ["team/stream:ORD*", "team/ORDERS", "t?am/*"])
def test_streams_are_for_the_namespaces_that_may_have_them(rule: str) -> None:
    woken = request(triggers=(StreamTrigger(stream="ORDERS"),))
    assert check(woken).request.triggers
    assert "is not allowed in namespace team" in refusal(woken, namespace="team")
    lax = rules(host_services=HostServices(allow_bindings=(rule,)))
    assert check(woken, namespace="team", rules=lax).namespace == "team"
    assert "is not allowed" in refusal(woken, rules=lax)


def test_no_namespace_passes_for_another() -> None:
    bound = request(bindings={"kv:orders": "ORDERS"})
    lax = rules(host_services=HostServices(allow_bindings=("team/*", "[ab]/*")))
    for namespace in ("team/kv:x", "team/", "a"):
        assert "is not allowed" in refusal(bound, namespace=namespace, rules=lax)


def test_buckets_of_workloads_are_known_by_the_operators_pattern() -> None:
    services = {**HostServices().services, "kv": KeyValueOptions(bucket_name="fn_${namespace}_${workload_name}")}
    renamed = rules(host_services=HostServices(services=services))
    assert "another workload" in refusal(request(bindings={"kv:a": "fn_team_cart"}), rules=renamed)
    assert "another workload" in refusal(request(triggers=(KvTrigger(bucket="fn_team_cart"),)), rules=renamed)
    for bucket in ("fn_team", "xfn_team_cart"):
        check(request(bindings={"kv:a": bucket, "objectstore:a": "fn_team_cart"}), rules=renamed)
    shared = rules(host_services=HostServices(services={**services, "kv": KeyValueOptions(bucket_name="ALL")}))
    check(request(bindings={"kv:a": "ALL"}), rules=shared)


def test_dead_letters_go_where_workloads_may_publish() -> None:
    lost = request(triggers=(StreamTrigger(stream="ORDERS", dead_letter="bills.pay"),))
    check(lost)
    services = HostServices().services
    for messaging in (MessagingOptions(deny_subjects=("bills.>",)), None):
        strict = rules(host_services=HostServices(services={**services, "messaging": messaging}))
        assert "bills.pay is none to which workloads of this node may publish" in refusal(lost, rules=strict)


@pytest.mark.parametrize("rule", ["[2001:db8::1]:4222", "[2001:db8::1]", "2001:DB8::*"])
def test_systems_may_be_named_by_address(rule: str) -> None:
    trusting = rules(host_services=HostServices(allow_connections=(rule,)))
    check(request(host_services=NatsConnection(nats_url="nats://[2001:db8::1]")), rules=trusting)
    for host in ("[2001:dc::]", "d"):
        refused = refusal(request(host_services=NatsConnection(nats_url=f"nats://{host}")), rules=trusting)
        assert "does not connect" in refused
