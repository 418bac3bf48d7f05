import json
from pathlib import Path

import pytest

from nex.cli.options import Options
from nex.cli.output import Output
from nex.cli.session import connect_options, open_session, teller
from nex.errors import UsageError


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "lab.json").write_text(json.dumps({"url": "nats://lab:1", "user": "me", "password": "pw", "token": ""}))
    return "lab"


def test_options_without_a_context() -> None:
    environ = {"NATS_USER": "me", "NATS_PASSWORD": "pw", "NATS_URL": "nats://a:1"}
    made = connect_options(Options.resolve({"jsdomain": "hub", "tlsfirst": True}, environ))
    assert (made.servers, made.user, made.password, made.token) == (("nats://a:1",), "me", "pw", "")
    assert (made.domain, made.tls_first, made.name, made.timeout_s) == ("hub", True, "nex", 2.0)


def test_a_user_without_a_password_is_a_token() -> None:
    made = connect_options(Options.resolve({"user": "t0ken"}, {}))
    assert (made.user, made.token) == ("", "t0ken")


def test_a_context_wins_over_the_environment(context: str) -> None:
    environ = {"NATS_CONTEXT": context, "NATS_URL": "nats://env:1", "NATS_USER": "other", "NATS_PASSWORD": "no"}
    made = connect_options(Options.resolve({}, environ))
    assert (made.servers, made.user, made.password) == (("nats://lab:1",), "me", "pw")


def test_a_flag_wins_over_a_context(context: str) -> None:
    made = connect_options(Options.resolve({"context": context, "server": "nats://flag:1", "password": "new"}, {}))
    assert (made.servers, made.user, made.password) == (("nats://flag:1",), "me", "new")


def test_an_unknown_context_is_named(context: str) -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        connect_options(Options(context="nowhere"))


async def test_a_wrong_namespace_is_told_before_any_server_is_asked() -> None:
    options = Options(servers=("nats://127.0.0.1:1",), namespace="a b")
    with pytest.raises(UsageError, match="--namespace: 'a b' is not a name"):
        async with open_session(options):
            pass


def test_a_lost_server_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    tell = teller(Output(as_json=False))
    for text in ("slow consumer", "unexpected EOF", "lost server nats://a", "Connection refused", "reconnected to b"):
        tell(text)
    assert capsys.readouterr().err.splitlines() == [
        "Slow consumer",
        "Lost the server (nats://a); trying to reach it again",
        "Reconnected to b",
    ]
