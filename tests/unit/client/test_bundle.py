import pytest

from nex.client.bundle import Order, Signer, split_argv
from nex.errors import UsageError
from nex.protocol.control import Connections, NatsConnection
from nex.protocol.location import Location
from nex.security.claims import decode
from nex.security.keys import SigningKey
from nex.security.xkeys import CurveKey, open_environment, open_text

HERE = Location.of("NEXCLIFILES", "echojs")


def order(kind: str = "v8", **fields: object) -> Order:
    return Order(name="echojs", type=kind, location=HERE, digest="ab" * 32, **fields)  # type: ignore[arg-type] # of the caller's making


def test_a_request_is_signed_over_the_digest_and_sealed_to_the_node() -> None:
    signer = Signer(SigningKey.create("account"), CurveKey.create())
    node = CurveKey.create()
    request = order(environment={"K": "s3cret"}, timeout_ms=250).checked().request("NODE", node.public, signer)
    claims = decode(request.workload_jwt)
    assert (claims.name, claims.hash, claims.issuer) == ("echojs", "ab" * 32, signer.issuer.public)
    assert open_environment(request.environment, node, request.sender_public_key) == {"K": "s3cret"}
    assert (request.target_node, request.timeout_ms, request.trigger_subjects) == ("NODE", 250, ("echojs",))
    assert "s3cret" not in repr(order(environment={"K": "s3cret"}))


def test_connections_are_sealed_for_the_issuer_of_the_claims() -> None:
    signer, node = Signer(SigningKey.create("account"), CurveKey.create()), CurveKey.create()
    named = Connections(triggers=NatsConnection(nats_url="nats://x", nats_user_seed="SU-SECRET"))
    request = order(connections=named).checked().request("NODE", node.public, signer)
    told = Connections.decode(open_text(request.sealed_connections, node, request.sender_public_key))
    assert (told.triggers, told.issuer) == (named.triggers, decode(request.workload_jwt).issuer)
    assert order().checked().request("NODE", node.public, signer).sealed_connections == ""


def test_a_function_without_triggers_is_called_at_its_name() -> None:
    assert order().checked().trigger_subjects == ("echojs",)
    assert order(trigger_subjects=("a.*", "b.>")).checked().trigger_subjects == ("a.*", "b.>")
    assert order("native").checked().trigger_subjects == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (order("native", trigger_subjects=("a",)), "takes no triggers"),
        (order("wasm", essential=True), "only a service can be essential"),
        (order(trigger_subjects=("a b",)), "'a b' is no subject"),
        (order(trigger_subjects=("a.>.b",)), "is no subject"),
    ],
)
def test_what_no_node_would_take_is_refused_at_once(wrong: Order, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wrong.checked()


def test_argv_is_split_as_a_shell_does() -> None:
    assert split_argv("") == ()
    assert split_argv("--port 80 --name 'a b'") == ("--port", "80", "--name", "a b")
    with pytest.raises(UsageError, match="--argv"):
        split_argv("'open")
