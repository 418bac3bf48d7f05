from __future__ import annotations

from pathlib import Path

import pytest
from driver_fakes import Fake, kind

from nex.drivers import registry
from nex.drivers.base import Fingerprint, Health, ImageOptions
from nex.node import preflight
from nex.node.config import Leafnode, NodeConfig, WorkloadUsers
from nex.node.findings import Item
from nex.security.keys import SigningKey, write_seed


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


async def test_the_key_that_signs_users_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "users.nk"
    key = SigningKey.create("account")
    write_seed(path, key.seed())
    wrong = tmp_path / "wrong.nk"
    write_seed(wrong, SigningKey.create("user").seed())

    async def look(file: Path) -> tuple[Item, bool]:
        report = await preflight.run(config(tmp_path, workload_users=WorkloadUsers(file)))
        (item,) = [item for item in report.items if item.name == "workload_users.signing_seed_file"]
        assert key.seed() not in repr(report)
        return item, report.ok

    item, ok = await look(path)
    assert (item.state, ok) == ("ok", True)
    assert key.public in item.detail
    path.chmod(0o640)
    item, ok = await look(path)
    assert (item.state, ok, item.remedy) == ("broken", True, f"chmod 600 {path}")
    item, ok = await look(wrong)
    assert (item.state, ok) == ("broken", False)
    assert "kind user" in item.detail
    item, ok = await look(tmp_path / "none.nk")
    assert (item.state, ok) == ("missing", False)


async def test_isolation_that_the_driver_lacks_is_told(tmp_path: Path) -> None:
    report = await preflight.run(config(tmp_path, no_sandbox=False))

    (fault,) = [item for item in report.items if item.state != "ok"]
    assert (fault.name, fault.state) == ("driver process", "broken")
    assert "no_sandbox is false" in fault.detail
    assert not report.ok


@pytest.fixture
def isolating(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """One driver that isolates is installed, beside that of processes; it works unless the test changes ``found``."""
    walled = kind("walled", 10)
    kinds = {"process": registry.load("process"), "walled": walled}
    monkeypatch.setattr(registry, "names", lambda: tuple(kinds))
    monkeypatch.setattr(registry, "load", kinds.__getitem__)
    return walled


async def test_of_several_drivers_one_is_enough_and_said_to_be_taken(tmp_path: Path, isolating: type[Fake]) -> None:
    report = await preflight.run(config(tmp_path, driver="auto", images=ImageOptions(store=tmp_path / "images")))

    items = {item.name: item for item in report.items}
    assert report.ok, report
    assert report.driver == isolating.name
    assert items["driver walled"].detail == "taken: the strongest that isolates and works here (kernel: 6.1)"
    assert items["driver process"].detail.startswith("works, but does not isolate")
    assert {"guest image", "KVM", "QEMU", "bubblewrap", "control groups"} <= items.keys()
    assert report.lacks_image
    assert (items["guest image"].state, items["guest image"].needed) == ("missing", False)
    assert items["guest image"].remedy == "nex node preflight --install"
    assert not (tmp_path / "images").exists()


async def test_without_a_driver_that_isolates_the_ways_out_are_told(
    tmp_path: Path, isolating: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolating, "found", Fingerprint(Health.UNHEALTHY, "nothing boots", "load kvm_intel"))
    own = ImageOptions(kernel=tmp_path / "vmlinux", rootfs=tmp_path / "rootfs")

    report = await preflight.run(config(tmp_path, driver="auto", images=own))

    items = {item.name: item for item in report.items}
    assert (report.ok, report.driver, report.lacks_image) == (False, "", False)
    (needed,) = [item for item in report.items if item.needed and item.state != "ok"]
    assert needed.name == "machines"
    assert "--install" in needed.remedy
    assert "--driver process" in needed.remedy
    assert items["driver walled"] == Item("driver walled", "broken", "nothing boots", "load kvm_intel", needed=False)
    assert items["guest image"].detail == f"{own.kernel} cannot be read"


async def test_with_no_sandbox_the_engines_of_the_host_are_looked_at_too(
    tmp_path: Path, isolating: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolating, "found", Fingerprint(Health.UNDETECTED, "there is none"))

    report = await preflight.run(config(tmp_path, driver="auto", no_sandbox=True))

    assert (report.ok, report.driver) == (True, "process")
    assert {"workload type v8", "guest image"} <= {item.name for item in report.items}
