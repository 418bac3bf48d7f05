"""The table of Firecracker's API: what it lets through, what not, and that it is the published one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nex.drivers.firecracker.api import (
    ACTION,
    BALLOON,
    BOOT_SOURCE,
    DESCRIBE,
    DRIVE,
    INTERFACE,
    LOAD_SNAPSHOT,
    MACHINE,
    METADATA,
    RESOURCES,
    VSOCK,
    Field,
    Kind,
    Resource,
)
from nex.errors import UsageError
from nex.testing.firecracker import schema

SPEC = "NEX_FIRECRACKER_SPEC"
_KINDS = {
    "string": Kind.TEXT,
    "integer": Kind.NUMBER,
    "boolean": Kind.FLAG,
    "array": Kind.LIST,
    "object": Kind.OBJECT,
}


@pytest.mark.parametrize(
    ("resource", "body", "text"),
    [
        (MACHINE, {"vcpu_count": 1}, "PUT /machine-config: the field mem_size_mib is missing"),
        (MACHINE, {"vcpu_count": 33, "mem_size_mib": 1}, "vcpu_count is 33, and must be from 1 to 32"),
        (MACHINE, {"vcpu_count": True, "mem_size_mib": 1}, "vcpu_count must be a number, and is a bool"),
        (MACHINE, {"vcpu_count": 1.5, "mem_size_mib": 1}, "vcpu_count must be a number, and is a float"),
        (MACHINE, {"vcpu_count": 1, "mem_size_mib": 0}, "mem_size_mib is 0, and must be 1 or more"),
        (MACHINE, {"vcpu_count": 1, "mem_size_mib": 1, "cpus": 2}, "there is no field cpus; there are: vcpu_count,"),
        (BOOT_SOURCE, {"kernel_image_path": None}, "kernel_image_path must be a text, and is a NoneType"),
        (VSOCK, {"guest_cid": 2, "uds_path": "/v"}, "guest_cid is 2"),
        (ACTION, {"action_type": "Reboot"}, "action_type is 'Reboot', and must be one of FlushMetrics, Inst"),
        (BALLOON, {"amount_mib": 0, "deflate_on_oom": 1}, "deflate_on_oom must be a flag, and is a int"),
        (
            DRIVE,
            {"drive_id": "a", "is_root_device": False, "rate_limiter": {"ops": {"size": 1}}},
            "the field rate_limiter.ops.refill_time is missing",
        ),
        (
            LOAD_SNAPSHOT,
            {"snapshot_path": "s", "network_overrides": [{"iface_id": "eth0"}]},
            "the field network_overrides[0].host_dev_name is missing",
        ),
        (DRIVE, {"drive_id": "../x", "is_root_device": False}, "drive_id is '../x', and must be made of letters"),
        (INTERFACE, {"iface_id": "eth0", "host_dev_name": "t", "mtu": 1}, "mtu is 1, and must be from 68 to 65535"),
        (DESCRIBE, {"x": 1}, "there is no field x; there are: none"),
    ],
)
def test_what_firecracker_would_refuse_is_refused_here(resource: Resource, body: Any, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        resource.address(body)
    assert text in str(refused.value)


def test_the_id_of_a_body_is_in_the_path() -> None:
    assert DRIVE.address({"drive_id": "root_1", "is_root_device": False}) == "/drives/root_1"
    assert MACHINE.address({"vcpu_count": 2, "mem_size_mib": 64}) == "/machine-config"


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


def _bodies(resource: Resource) -> st.SearchStrategy[dict[str, Any]]:
    names = {name: _of(known) | _values for name, known in (resource.fields or {}).items()}
    return st.fixed_dictionaries({}, optional={**names, "other": _values})


def _of(known: Field) -> st.SearchStrategy[Any]:
    if known.choices:
        return st.sampled_from(known.choices)
    if known.kind is Kind.OBJECT:
        return st.fixed_dictionaries({}, optional={name: _of(inner) for name, inner in known.fields.items()})
    if known.item is not None:
        return st.lists(_of(known.item), max_size=2)
    numbers = st.integers(known.least or 0, known.most or 1000)
    return {Kind.TEXT: st.text("abc", min_size=1, max_size=3), Kind.NUMBER: numbers, Kind.FLAG: st.booleans()}[
        known.kind
    ]


@given(data=st.data())
def test_what_is_let_through_is_taken_by_the_double_which_has_a_table_of_its_own(data: st.DataObject) -> None:
    writers = [resource for resource in RESOURCES if resource.method != "GET" and resource is not METADATA]
    resource = data.draw(st.sampled_from(writers))
    body = data.draw(_bodies(resource))
    try:
        path = resource.address(body)
    except UsageError:
        return
    try:
        schema.read(resource.method, path, msgspec.json.encode(body))
    except schema.Refused as refused:
        # Only the shape of a hardware address and of a memory backend is the double's to know alone.
        assert "guest_mac" in str(refused), refused  # noqa: PT017


@pytest.fixture(scope="module")
def spec() -> Mapping[str, Any]:
    if SPEC not in os.environ:
        pytest.skip(f"{SPEC} names no published API")
    return cast("Mapping[str, Any]", yaml.safe_load(Path(os.environ[SPEC]).read_text()))


def _resolved(spec: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in part:
        return cast("Mapping[str, Any]", spec["definitions"][part["$ref"].rpartition("/")[2]])
    return part


def _published(spec: Mapping[str, Any], method: str, path: str) -> Mapping[str, Any] | None:
    """The body of a call, or None if it has none."""
    for parameter in spec["paths"][path][method.lower()].get("parameters", []):
        if parameter["in"] == "body":
            return _resolved(spec, parameter["schema"])
    return None


@pytest.mark.parametrize("resource", RESOURCES, ids=str)
def test_our_table_is_the_published_one(spec: Mapping[str, Any], resource: Resource) -> None:
    published = _published(spec, resource.method, resource.path)
    if published is None:
        assert resource.fields == {}
    elif resource.fields is None:
        assert published.get("additionalProperties") is True
    else:
        _compare(spec, resource.fields, published, str(resource))


def _choices(there: Mapping[str, Any]) -> set[str]:
    # To YAML, Off is false.
    return {"Off" if choice is False else str(choice) for choice in there.get("enum", [])}


def _compare(spec: Mapping[str, Any], fields: Mapping[str, Field], published: Mapping[str, Any], where: str) -> None:
    assert set(fields) <= set(published["properties"]), where
    assert {name for name, known in fields.items() if known.required} == set(published.get("required", [])), where
    for name, known in fields.items():
        there = _resolved(spec, published["properties"][name])
        _compare_field(spec, known, there, f"{where} {name}")


def _compare_field(spec: Mapping[str, Any], known: Field, there: Mapping[str, Any], where: str) -> None:
    assert _KINDS[there["type"]] is known.kind, where
    assert set(known.choices) == _choices(there), where
    # Ours may be narrower where the text says more than the range does, never wider.
    assert known.least is None or known.least >= there.get("minimum", known.least), where
    assert "maximum" not in there or (known.most is not None and known.most <= there["maximum"]), where
    if known.kind is Kind.OBJECT:
        _compare(spec, known.fields, there, where)
    if known.item is not None:
        _compare_field(spec, known.item, _resolved(spec, there["items"]), where)


@pytest.mark.parametrize(("call", "kind"), [c for c in schema.BODIES.items() if c[1] is not None], ids=str)
def test_the_doubles_table_is_the_published_one_too(
    spec: Mapping[str, Any], call: tuple[str, str], kind: type[Any]
) -> None:
    published = _published(spec, *call)
    assert published is not None
    if "properties" not in published:
        assert kind == dict[str, Any]
        return
    components = msgspec.json.schema_components([kind])
    ours = components[1][kind.__name__]
    assert set(ours["properties"]) == set(published["properties"])
    assert set(ours.get("required", [])) == set(published.get("required", []))
    assert ours["additionalProperties"] is False
    for name, field in ours["properties"].items():
        there = _resolved(spec, published["properties"][name])
        if "enum" in field:
            assert set(field["enum"]) == _choices(there), name
