"""Who a node is and how it stands, as its replies and heartbeats say."""

from __future__ import annotations

import time

from nex.node.config import NodeConfig
from nex.node.tags import node_tags
from nex.protocol.times import format_uptime

__all__ = ["Standing"]


class Standing:
    """One node. ``xkey`` is its public curve key, ``driver`` makes its machines, ``isolates`` is whether they do."""

    def __init__(self, config: NodeConfig, *, node_id: str, xkey: str, driver: str, isolates: bool) -> None:
        self.config = config
        self.node_id = node_id
        self.xkey = xkey
        self.driver = driver
        self.isolates = isolates
        self.lameduck = False
        self._since = time.monotonic()

    @property
    def tags(self) -> dict[str, str]:
        """The node's tags, now."""
        return node_tags(self.config.tags, driver=self.driver, isolates=self.isolates, lameduck=self.lameduck)

    @property
    def uptime(self) -> str:
        """How long it has been up, for people."""
        return format_uptime(time.monotonic() - self._since)
