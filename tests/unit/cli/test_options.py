from pathlib import Path

import pytest

from nex.cli.options import GLOBALS, Options
from nex.errors import UsageError


def test_defaults() -> None:
    options = Options.resolve({}, {})
    assert options.servers == ("nats://127.0.0.1:4222",)
    assert (options.namespace, options.timeout_s, options.window_s) == ("default", 2.0, 0.75)


def test_flags_win_over_the_environment() -> None:
    environ = {"NATS_URL": "nats://env:1", "NEX_NAMESPACE": "env", "NATS_TIMEOUT": "750ms", "NEX_LOGJSON": "true"}
    options = Options.resolve({"server": "nats://a:1, nats://b:2", "json": True}, environ)
    assert options.servers == ("nats://a:1", "nats://b:2")
    assert (options.namespace, options.timeout_s, options.window_s) == ("env", 0.75, 0.75)
    assert options.json
    assert options.logjson
    assert options.flagged == {"server", "json"}


def test_secrets_stay_out_of_the_repr() -> None:
    assert "s3cret" not in repr(Options.resolve({"password": "s3cret", "token": "s3cret"}, {}))


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"timeout": "soon"}, {}, "--timeout: 'soon' is no duration"),
        ({"timeout": "0"}, {}, "--timeout: must be more than zero"),
        ({}, {"NATS_TIMEOUT": "-1s"}, "--timeout: '-1s'"),
        ({"creds": "/no/such/file"}, {}, "--creds: there is no file"),
        ({"server": " , "}, {}, "--server: no server is named"),
        ({"server": "nats://here:99999"}, {}, "'nats://here:99999' is no server's address"),
        ({"server": "good, http://here:80"}, {}, "'http://here:80' is no server's address"),
        ({}, {"NATS_URL": "nats://"}, "'nats://' is no server's address"),
        ({}, {"NEX_LOGLEVEL": "loud"}, "--loglevel: 'loud' is not one of"),
        ({}, {"NEX_LOGJSON": "perhaps"}, "NEX_LOGJSON: 'perhaps' is neither"),
    ],
)
def test_wrong_values_name_their_option(flags: dict[str, object], environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Options.resolve(flags, environ)


@pytest.mark.parametrize("namespace", ["", "a.b", "*", ">", "a b"])
def test_one_namespace_is_one_token(namespace: str) -> None:
    with pytest.raises(UsageError, match="--namespace"):
        Options(namespace=namespace).literal_namespace()


def test_watching_takes_all_namespaces() -> None:
    assert [Options(namespace=n).filter_namespace() for n in ("*", "", "a")] == ["*", "*", "a"]
    with pytest.raises(UsageError):
        Options(namespace="a.b").filter_namespace()


def test_paths_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.creds").write_text("x")
    assert Options.resolve({"creds": "~/a.creds"}, {}).creds == tmp_path / "a.creds"


def test_every_option_is_a_field() -> None:
    renamed = {"server": "servers", "timeout": "timeout_s"}
    for option in GLOBALS:
        assert hasattr(Options(), renamed.get(option.name, option.name))


def test_servers_are_taken_as_the_nats_command_takes_them() -> None:
    text = "here,tls://user:pa%3Ass@there:4223, [::1]:4222,wss://token@web"
    assert len(Options.resolve({"server": text}, {}).servers) == 4


def test_a_wrong_address_does_not_tell_its_password() -> None:
    with pytest.raises(UsageError) as raised:
        Options.resolve({"server": "nats://me:s3cret@host:port"}, {})
    assert "s3cret" not in str(raised.value)
    assert "host:port" in str(raised.value)
