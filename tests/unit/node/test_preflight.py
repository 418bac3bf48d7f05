from __future__ import annotations

from pathlib import Path

from nex.node import preflight
from nex.node.config import Leafnode, NodeConfig


def config(folder: Path, **changes: object) -> NodeConfig:
    told: dict[str, object] = {"driver": "process", **changes}
    return NodeConfig(name="one", state_dir=folder, **told)  # type: ignore[arg-type]  # each test says what it changes


async def test_this_host_has_all_it_needs(tmp_path: Path) -> None:
    report = await preflight.run(config(tmp_path / "not" / "made" / "yet"))

    assert report.ok, report
    names = {item.name for item in report.items}
    assert {"nats-server", "state folder", "workload type v8", "driver process"} <= names
    assert not (tmp_path / "not").exists()


async def test_what_is_missing_comes_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = config(
        tmp_path / "file" / "state", driver="none", leafnode=Leafnode(("nats://x",), tmp_path / "none.creds")
    )

    report = await preflight.run(broken)

    assert not report.ok
    faults = {item.name: item for item in report.items if item.state != "ok"}
    assert set(faults) == {"state folder", "driver none", "leafnode.credentials"}
    assert all(item.detail and item.remedy and item.needed for item in faults.values())


async def test_isolation_that_the_driver_lacks_is_told(tmp_path: Path) -> None:
    report = await preflight.run(config(tmp_path, no_sandbox=False))

    (fault,) = [item for item in report.items if item.state != "ok"]
    assert (fault.name, fault.state) == ("driver process", "broken")
    assert "no_sandbox is false" in fault.detail
    assert not report.ok
