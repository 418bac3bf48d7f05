from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.drivers.base import ImageOptions, Resources
from nex.errors import ConfigError, Problem
from nex.node.config import KEYS, NodeConfig, WorkloadUsers, resolve
from nex.security.keys import SigningKey

ISSUER = "AAD7JVSRVWVBTIBT5EG3BZEVHC4NT5ZDNVENGY7LNEAUVKORAYZXCJPH"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, tree: object, name: str = "node.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(tree) if name.endswith(".json") else str(tree))
    return path


def made(
    tree: object = None,
    *,
    tmp_path: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
) -> NodeConfig:
    file = written(tmp_path, tree) if tmp_path is not None else None
    return resolve(
        file=file, environ={"HOME": "/home/somebody", **(environ or {})}, flags={"name": "one", **(flags or {})}
    )


def problems(tmp_path: Path, tree: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        made(tree, tmp_path=tmp_path)
    return caught.value.problems


def test_nothing_is_needed() -> None:
    config = made()

    assert config.driver == "auto"
    assert config.machine_pool_size == 1
    assert config.workload_types == ("native", "v8", "wasm")
    assert config.state_dir == Path("/home/somebody/.local/state/nex/one")
    assert config.tags == {"node_name": "one"}
    assert config.restore
    assert not config.allow_unverified_artifacts


def test_the_state_folder_follows_xdg() -> None:
    assert made(environ={"XDG_STATE_HOME": "/var/state"}).state_dir == Path("/var/state/nex/one")


def test_a_file_in_the_working_folder_is_read(tmp_path: Path) -> None:
    written(tmp_path, {"machine_pool_size": 4}, "config.json")

    assert made().machine_pool_size == 4


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    tree = {"machine_pool_size": 2, "nexus": "file", "restore": False}

    config = made(
        tree,
        tmp_path=tmp_path,
        environ={"NEX_MACHINE_POOL_SIZE": "3", "NEX_NEXUS": "environment"},
        flags={"machine_pool_size": 4, "nexus": None},
    )

    assert (config.machine_pool_size, config.nexus, config.restore) == (4, "environment", False)


def test_tables_are_merged_by_name(tmp_path: Path) -> None:
    config = made({"tags": {"a": "1", "b": "1"}}, tmp_path=tmp_path, environ={"NEX_TAGS": "b=2,c=3"})

    assert config.tags == {"node_name": "one", "a": "1", "b": "2", "c": "3"}


def test_lists_are_replaced_and_null_is_the_default(tmp_path: Path) -> None:
    tree = {"workload_types": ["wasm"], "machine_pool_size": None, "node_limits": None}

    config = made(tree, tmp_path=tmp_path, environ={"NEX_WORKLOAD_TYPES": "native, v8"})

    assert config.workload_types == ("native", "v8")
    assert config.machine_pool_size == 1
    assert config.node_limits.max_workloads == 0


def test_toml_holds_the_same_tree(tmp_path: Path) -> None:
    path = written(tmp_path, 'nexus = "x"\n[node_limits]\nmax_workloads = 3\n[tags]\nzone = "b"\n', "node.toml")

    config = resolve(file=path, environ={}, flags={"name": "one"})

    assert (config.nexus, config.node_limits.max_workloads, config.tags["zone"]) == ("x", 3, "b")


def test_the_minimal_file_of_0_2_is_taken(tmp_path: Path) -> None:
    tree = {
        "default_resource_dir": "/tmp/nex",
        "machine_pool_size": 1,
        "no_sandbox": True,
        "workload_types": ["native", "v8", "wasm"],
        "machine_template": {"vcpu_count": 2, "memsize_mib": 512},
        "cni": {"subnet": "192.168.127.0/24"},
    }

    config = made(tree, tmp_path=tmp_path)

    assert config.no_sandbox is True
    assert (config.machine_template.vcpu_count, config.machine_template.memory_mib) == (2, 512)
    assert config.images.store == Path("/tmp/nex")
    assert config.unused == ("cni",)


def test_an_empty_list_of_types_means_native(tmp_path: Path) -> None:
    assert made({"workload_types": []}, tmp_path=tmp_path).workload_types == ("native",)


def test_the_name_is_that_of_the_tag_of_0_2(tmp_path: Path) -> None:
    config = resolve(file=written(tmp_path, {"tags": {"node_name": "lazy-cat"}}), environ={}, flags={})

    assert config.name == "lazy-cat"


def test_every_problem_is_told_at_once_with_its_source(tmp_path: Path) -> None:
    tree = {
        "machine_pool_size": 0,
        "workload_types": "v8,wasm",
        "valid_issuers": ["nobody"],
        "deny_trigger_subjects": ["a..b"],
        "machine_pool_sise": 3,
        "node_limits": 7,
        "workload_limits": {"timeout_ms": 5000, "max_timeout_ms": 1000},
        "leafnode": {"credentials": "x.creds"},
        "workload_users": {"account": "ABC"},
    }
    path = written(tmp_path, tree)

    with pytest.raises(ConfigError) as caught:
        resolve(file=path, environ={"NEX_RESTORE": "perhaps"}, flags={"name": "../up"})

    found = {problem.key: problem for problem in caught.value.problems}
    assert set(found) == {
        "machine_pool_size",
        "valid_issuers",
        "deny_trigger_subjects",
        "machine_pool_sise",
        "node_limits",
        "workload_limits.timeout_ms",
        "leafnode.credentials",
        "workload_users.account",
        "restore",
        "name",
    }
    assert found["machine_pool_size"].source == str(path)
    assert found["restore"].source == "environment NEX_RESTORE"
    assert found["name"].source == "command line"
    assert "did you mean machine_pool_size" in found["machine_pool_sise"].text
    assert "nobody" in str(caught.value)


def test_an_account_needs_the_key_that_signs_for_it(tmp_path: Path) -> None:
    account = SigningKey.create("account").public
    tree = {"name": "one", "workload_users": {"account": account}}

    with pytest.raises(ConfigError, match=r"needs workload_users\.signing_seed_file"):
        resolve(file=written(tmp_path, tree), environ={}, flags={})
    told = resolve(
        file=written(tmp_path, tree), environ={"NEX_WORKLOAD_USERS_SIGNING_SEED_FILE": "/etc/users.nk"}, flags={}
    )

    assert told.workload_users == WorkloadUsers(Path("/etc/users.nk"), account)


@pytest.mark.parametrize(
    ("name", "content"),
    [("bad.json", "{"), ("bad.toml", "= 3"), ("list.json", "[1]"), ("deep.json", "[" * 100_000)],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(ConfigError, match="--config"):
        resolve(file=tmp_path / name, environ={}, flags={"name": "one"})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        resolve(file=tmp_path / "none.json", environ={}, flags={})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("machine_pool_size", True),
        ("machine_pool_size", 1.5),
        ("machine_pool_size", "many"),
        ("restore", 1),
        ("tags", {"a": 1}),
        ("tags", ["a"]),
        ("nexus", 3),
        ("workload_types", [1]),
        ("state_dir", ""),
        ("name", "a/b"),
        ("autostart", {"workloads": [{"name": "x"}]}),
        ("autostart", {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "unknown": 1}]}),
        ("autostart", {"workloads": [{"name": "x", "type": "oci", "location": "nats://B/K"}]}),
        ("autostart", {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "namespace": "a.b"}]}),
        (
            "autostart",
            {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "trigger_subjects": ["a..b"]}]},
        ),
        ("autostart", {"workloads": [{"name": "x", "type": "v8", "location": "http://B/K"}]}),
        ("autostart", {"workloads": [{"name": "x y", "type": "v8", "location": "nats://B/K"}]}),
        (
            "autostart",
            {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "triggers": [{"type": "queue"}]}]},
        ),
        (
            "autostart",
            {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "bindings": {"queue:a": "B"}}]},
        ),
        (
            "autostart",
            {"workloads": [{"name": "x", "type": "v8", "location": "nats://B/K", "triggers": [{"type": "schedule"}]}]},
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(file=written(tmp_path, {key: value}), environ={}, flags={})

    assert [problem.key.partition(".")[0] for problem in caught.value.problems] == [key]


def test_autostart_entries_keep_their_environment_out_of_sight(tmp_path: Path) -> None:
    entry = {"name": "x", "type": "v8", "location": "nats://B/K", "environment": {"PASSWORD": "s3cret"}}

    config = made({"autostart": {"workloads": [{**entry, "trigger_subjects": ["a.>"]}]}}, tmp_path=tmp_path)

    assert config.autostart[0].environment == {"PASSWORD": "s3cret"}
    assert "s3cret" not in repr(config)


def test_a_wrong_value_is_not_repeated_where_it_may_be_secret(tmp_path: Path) -> None:
    found = problems(tmp_path, {"autostart": {"workloads": [{"environment": {"A": {"s3cret": 1}}}]}})

    assert "s3cret" not in str(found)


def test_keys_are_unique_and_explained() -> None:
    names = [key.name for key in KEYS]
    variables = [key.env for key in KEYS if key.env]

    assert len(set(names)) == len(names)
    assert len(set(variables)) == len(variables)
    assert all(key.doc.endswith(".") and key.type_name and key.default_text for key in KEYS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from([key.name for key in KEYS] + ["x", "node_limits", "tags"]), inner)
        ),
    )
)
def test_no_tree_makes_it_fail_otherwise(tree: object) -> None:
    path = Path("any.json")
    path.write_text(json.dumps(tree))
    try:
        config = resolve(file=path, environ={}, flags={"name": "one"})
    except ConfigError as caught:
        found = caught.problems
    else:
        found = (Problem("none", "", config.name),)
    assert found


def test_machines_have_bounds_that_nobody_named() -> None:
    config = made(environ={"XDG_DATA_HOME": "/data"}, flags={"machine_template.memsize_mib": 512})

    template = config.machine_template
    assert (template.vcpu_count, template.memory_mib, template.pids, template.disk_mib) == (1, 512, 1024, 256)
    assert config.images == ImageOptions(store=Path("/data/nex/images"))
    assert config.agent_handshake_timeout_ms is None


def test_what_machines_are_made_of_is_configured_as_in_0_2(tmp_path: Path) -> None:
    bucket = {"size": 1000, "refill_time": 100, "one_time_burst": None}
    tree = {
        "kernel_filepath": "/guests/vmlinux",
        "rootfs_filepath": "/guests/rootfs.ext4",
        "default_resource_dir": "/guests",
        "rate_limiters": {"bandwidth": bucket | {"one_time_burst": 5}, "iops": bucket},
        "machine_template": {"vcpu_count": 0.5, "pids": 64, "disk_mib": 32},
    }

    config = made(tree, tmp_path=tmp_path)

    guests = Path("/guests")
    assert config.images == ImageOptions(store=guests, kernel=guests / "vmlinux", rootfs=guests / "rootfs.ext4")
    plain = {"size": 1000, "refill_time": 100}
    assert config.rate_limiters == {"bandwidth": plain | {"one_time_burst": 5}, "iops": plain}
    assert config.machine_template == Resources(vcpu_count=0.5, memory_mib=256, pids=64, disk_mib=32)
    assert config.unused == ()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("driver", "zzz", "there are: auto, .*process"),
        ("workload_types", ["native", "oci"], "no provider .* native, v8, wasm"),
        ("rate_limiters", {"bandwidth": {"size": 0, "refill_time": 1}}, "size"),
        ("rate_limiters", {"bandwidth": {"size": 1}}, "refill_time"),
        ("rate_limiters", {"ops": {"size": 1, "refill_time": 1}}, "ops"),
        ("rate_limiters", "{", "JSON"),
        ("rate_limiters", [], "table"),
        ("machine_template", {"vcpu_count": 0}, "between 0.01 and 256"),
        ("machine_template", {"vcpu_count": float("nan")}, "between"),
        ("machine_template", {"vcpu_count": True}, "number"),
        ("machine_template", {"vcpu_count": "half"}, "number"),
        ("machine_template", {"pids": 0}, "between"),
        ("kernel_filepath", "/guests/vmlinux", "rootfs_filepath"),
        ("rootfs_filepath", "/guests/rootfs", "kernel_filepath"),
        ("driver_options", {"accel": "tcg"}, "one table for each driver"),
        ("driver_options", {"process": 1}, "table of that driver"),
    ],
)
def test_what_machines_cannot_be_made_of_is_told(tmp_path: Path, key: str, value: object, text: str) -> None:
    (problem,) = problems(tmp_path, {key: value})

    assert problem.key.partition(".")[0] == key
    assert re.search(text, problem.text)


def test_everything_that_is_wrong_with_machines_is_told_at_once(tmp_path: Path) -> None:
    tree = {"driver": "zzz", "workload_types": ["oci"], "rate_limiters": 1, "rootfs_filepath": "/x"}

    assert {problem.key for problem in problems(tmp_path, tree)} == set(tree)


def test_another_default_is_one_and_no_more(tmp_path: Path) -> None:
    file = written(tmp_path, {"driver": None})
    rest: dict[str, Any] = {"flags": {"name": "one"}, "defaults": {"driver": "process"}}

    assert resolve(file=file, environ={}, **rest).driver == "process"
    assert resolve(file=file, environ={"NEX_DRIVER": "auto"}, **rest).driver == "auto"
