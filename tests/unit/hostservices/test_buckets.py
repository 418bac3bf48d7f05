"""The name of a workload's own bucket: readable where it can be, never another's."""

from __future__ import annotations

import hashlib
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nex.hostservices.keyvalue import KeyValueOptions
from nex.hostservices.objectstore import ObjectStoreOptions
from nex.hostservices.stores import Kind, default_bucket

_KV = "hs_${namespace}_${workload_name}_kv"
_OBJ = "hs_${namespace}_${workload_name}_obj"

# Few letters, so that names that could be mistaken for one another are tried.
_names = st.text("ab_-.é0", min_size=1, max_size=6) | st.sampled_from(["hs", "kv", "0" * 20, "a" * 300])
_fixed = st.text("a_-k", max_size=3)
_patterns = st.sampled_from([_KV, _OBJ]) | st.tuples(_fixed, _fixed, _fixed, st.booleans()).map(
    lambda made: (
        made[0]
        + ("${namespace}" + made[1] + "${workload_name}" if made[3] else "${workload_name}" + made[1] + "${Namespace}")
        + made[2]
    )
)


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "pattern", "bucket"),
    [
        ("kv", "default", "kv-function", _KV, "hs_default_kv-function_kv"),
        ("objectstore", "default", "fn", _OBJ, "hs_default_fn_obj"),
        ("kv", "default", "fn", "hs_${NAMESPACE}_${Workload_Name}_kv", "hs_default_fn_kv"),
        ("kv", "default", "fn", "prod_${namespace}", "prod_default"),
        ("kv", "default", "fn", "shared", "shared"),
    ],
)
def test_the_name_is_what_the_pattern_says(kind: Kind, namespace: str, name: str, pattern: str, bucket: str) -> None:
    assert default_bucket(kind, namespace, name, pattern) == bucket


@pytest.mark.parametrize("name", ["my_fn", "a.b", "ä", "x" * 300])
def test_a_name_that_could_be_another_is_a_digest(name: str) -> None:
    digest = hashlib.sha256(b"default\0" + name.encode()).hexdigest()[:20]
    assert default_bucket("kv", "default", name, _KV) == f"hs_{digest}_kv"
    assert default_bucket("objectstore", "default", name, _OBJ) == f"hs_{digest}_obj"


@given(_patterns, st.tuples(_names, _names), st.tuples(_names, _names))
@example(_KV, ("a_b", "c"), ("a", "b_c"))
@example("${namespace}_${workload_name}_kv", ("hs", "c04c3f1ee3fb1d5db4ff"), ("a_", "b"))
def test_two_workloads_never_share_a_bucket(pattern: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    names = [default_bucket("kv", *workload, pattern) for workload in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,200}", name) for name in names)


@given(st.sampled_from(["team_${namespace}", "${namespace}", "${namespace}_kv"]), _names, _names, _names, _names)
def test_a_pattern_of_the_namespace_is_one_bucket_for_each(
    pattern: str, namespace: str, other: str, one: str, two: str
) -> None:
    mine = default_bucket("kv", namespace, one, pattern)
    assert mine == default_bucket("kv", namespace, two, pattern)
    assert (mine == default_bucket("kv", other, one, pattern)) == (namespace == other)


def test_a_digest_cannot_be_had_by_a_choice_of_names() -> None:
    pattern = "${namespace}_${workload_name}_kv"
    victim = default_bucket("kv", "a_b", "c", pattern)
    attacker = default_bucket("kv", "hs", victim[3:23], pattern)
    assert attacker != victim


@pytest.mark.parametrize("options", [KeyValueOptions, ObjectStoreOptions])
@pytest.mark.parametrize(
    "table",
    [
        {"bucket_name": "a.b"},
        {"bucket_name": ""},
        {"bucket_name": "${name}"},
        {"bucket_name": "x" * 201},
        {"max_bytes": 0},
        {"page": 0},
        {"unknown": 1},
    ],
)
def test_options_that_cannot_be_are_told(options: type[msgspec.Struct], table: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, options)


def test_options_of_0_2_are_understood() -> None:
    table = {"bucket_name": "hs_${namespace}_${workload_name}_kv", "max_bytes": 524288, "jit_provision": True}
    assert msgspec.convert(table, KeyValueOptions) == KeyValueOptions()
