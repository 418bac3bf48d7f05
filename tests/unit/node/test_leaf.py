from __future__ import annotations

import pytest

from nex.node.leaf import count_links


@pytest.mark.parametrize(
    ("answer", "links"),
    [
        (b'{"server":{},"data":{"leafnodes":1,"leafs":[{}]}}', 1),
        (b'{"data":{}}', 0),
        (b"", 0),
        (b"[1]", 0),
        (b'{"data":3}', 0),
    ],
)
def test_an_answer_tells_how_many(answer: bytes, links: int) -> None:
    assert count_links(answer) == links
