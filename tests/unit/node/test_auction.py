from __future__ import annotations

import pytest

from nex.node.auction import fits
from nex.node.tags import node_tags
from nex.protocol.control import AuctionRequest

TAGS = {"nex.os": "linux", "nex.arch": "amd64", "node_name": "One", "zone": "b"}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (AuctionRequest(), True),
        (AuctionRequest(os="Linux", arch="AMD64"), True),
        (AuctionRequest(arch="arm64"), False),
        (AuctionRequest(os="darwin"), False),
        (AuctionRequest(sandboxed=False), True),
        (AuctionRequest(sandboxed=True), False),
        (AuctionRequest(tags={"zone": "B", "node_name": "one"}), True),
        (AuctionRequest(tags={"zone": "c"}), False),
        (AuctionRequest(tags={"rack": ""}), False),
        (AuctionRequest(workload_types=("v8", "wasm")), True),
        (AuctionRequest(workload_types=("v8", "native")), False),
    ],
)
def test_all_that_is_asked_for_must_hold(request_: AuctionRequest, expected: bool) -> None:
    assert fits(request_, tags=TAGS, workload_types=("v8", "wasm"), sandboxed=False) is expected


def test_the_nodes_own_tags_win() -> None:
    tags = node_tags(
        {"nex.os": "plan9", "nex.unsafe": "no", "nex.lameduck": "true", "zone": "b"},
        driver="qemu",
        isolates=True,
        lameduck=False,
    )

    assert tags["nex.os"] == "linux"
    assert tags["zone"] == "b"
    assert "nex.unsafe" not in tags
    assert "nex.lameduck" not in tags


def test_tags_tell_of_no_isolation_and_of_the_lame_duck() -> None:
    tags = node_tags({}, driver="process", isolates=False, lameduck=True)

    assert (tags["nex.unsafe"], tags["nex.lameduck"]) == ("true", "true")
    assert int(tags["nex.cpucount"]) > 0
