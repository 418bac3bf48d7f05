import random

import pytest

from nex.client.placement import is_lame, may_try_next, rank
from nex.errors import NotFoundError, RefusedError
from nex.protocol.control import PingReply


def node(name: str, running: int, **tags: str) -> PingReply:
    return PingReply(node_id=name, running_machines=running, tags={k.replace("_", "."): v for k, v in tags.items()})


def test_fewest_machines_come_first_and_lame_ducks_never() -> None:
    lame = node("lame", 0, nex_lameduck="true")
    ranked = rank([node("c", 7), lame, node("a", 1), node("b", 3)], random.Random(1))  # noqa: S311 - dice
    assert [n.node_id for n in ranked] == ["a", "b", "c"]
    assert is_lame(lame)


def test_the_dice_decide_ties() -> None:
    nodes = [node(name, 2) for name in "abcd"]
    firsts = {rank(nodes, random.Random(seed))[0].node_id for seed in range(50)}  # noqa: S311 - dice
    assert firsts == set("abcd")


def test_no_candidate_is_said() -> None:
    with pytest.raises(NotFoundError, match="nex node up"):
        rank([node("lame", 0, nex_lameduck="True")])


@pytest.mark.parametrize(
    ("reason", "next_one"),
    [
        ("Node is at maximum workload limit. Deploy request denied", True),
        ("Node is in lame duck mode. Workload deploy request denied", True),
        ("Failed to get agent client from pool: no available agent client in pool", True),
        ("Invalid deploy request: claims", False),
        ("Failed to deploy workload: workload rejected by agent: bad ELF", False),
        ("Workload file size would exceed node limitations", False),
    ],
)
def test_only_a_node_without_room_sends_us_to_the_next(reason: str, next_one: bool) -> None:
    assert may_try_next(RefusedError(reason)) is next_one
