from dataclasses import replace
from pathlib import Path

from nex.cli.options import Options
from nex.cli.session import tool_flags
from nex.cli.workload import describe, summary
from nex.client.bundle import Order
from nex.client.rollout import Deployed, Target
from nex.protocol.control import Connections, DeployReply, NatsConnection
from nex.protocol.location import Location


def deployed(kind: str = "v8", *triggers: str) -> Deployed:
    order = Order(
        name="fn",
        type=kind,
        location=Location.of("B", "fn"),
        digest="d",
        environment={"K": "s3cret"},
        trigger_subjects=triggers,
    )
    return Deployed(order, DeployReply(started=True, id="wid", issuer="A", name="fn"), Target("NID", "fox", "X"))


def test_a_function_is_told_with_how_to_call_and_stop_it() -> None:
    options = Options(servers=("nats://h:1",), namespace="team")
    told = dict(describe(deployed("v8", "a.*.>", "b"), options))
    assert told["Call it"] == "nats -s nats://h:1 req a.anything.anything 'hello'"
    assert told["Stop it"] == "nex -s nats://h:1 --namespace team stop fn"
    assert told["Node"] == "fox NID"


def test_a_function_with_triggers_elsewhere_is_called_there() -> None:
    there = NatsConnection(nats_url="nats://a:1,nats://b:1", nats_user_jwt="j", nats_user_seed="s3cret")
    elsewhere = deployed("v8", "a")
    elsewhere = replace(elsewhere, order=replace(elsewhere.order, connections=Connections(triggers=there)))
    told = dict(describe(elsewhere, Options(servers=("nats://h:1",), creds=Path("my.creds"))))
    assert told["Call it"] == "nats -s nats://a:1,nats://b:1 --creds FILE req a 'hello'"
    assert told["Stop it"] == "nex -s nats://h:1 --creds my.creds stop fn"


def test_a_service_has_no_call() -> None:
    assert "Call it" not in dict(describe(deployed("native"), Options()))


def test_what_is_told_holds_no_secret() -> None:
    told = f"{describe(deployed('v8', 'a'), Options())}{summary(deployed('v8', 'a'), 'default')}"
    assert "s3cret" not in told


def test_flags_for_other_tools_carry_no_credentials() -> None:
    assert tool_flags(Options()) == ""
    assert tool_flags(Options(context="lab")) == " --context lab"
    assert tool_flags(Options(servers=("nats://user:s3cret@h:1",), user="ada", password="s3cret", token="s3cret")) == ""


def test_flags_for_other_tools_name_the_files_that_were_given() -> None:
    options = Options(servers=("tls://h:1",), creds=Path("my node.creds"), tlsca=Path("ca.pem"), tlsfirst=True)
    assert tool_flags(options) == " -s tls://h:1 --creds 'my node.creds' --tlsca ca.pem --tlsfirst"
