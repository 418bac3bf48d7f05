from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driver_fakes import WORKS, Fake, kind

from nex.drivers import registry
from nex.drivers.base import Driver, DriverContext, Fingerprint, Health
from nex.errors import MachineError, NotFoundError, UsageError
from nex.node import choice
from nex.node.choice import Candidate, Choice, choose
from nex.node.config import NodeConfig

ABSENT = Fingerprint(Health.UNDETECTED, "there is no jailer", "install firecracker")
SICK = Fingerprint(Health.UNHEALTHY, "its guests do not boot", "load kvm_intel")


STRONG, MIDDLE, WEAK = kind("strong", 30), kind("middle", 20), kind("weak", 10)
PLAIN = kind("plain", 0, isolates=False)


def told(**changes: Any) -> NodeConfig:
    return NodeConfig(name="one", state_dir=Path("/state"), **changes)


def candidate(kind: type[Fake], found: Fingerprint = WORKS) -> Candidate:
    return Candidate(kind.name, found, kind(DriverContext(Path("/state"))))


def chosen(*candidates: Candidate, **changes: Any) -> Choice:
    return choose(told(**changes), candidates)


def reasons(found: Choice) -> dict[str, str]:
    return {one.name: found.why(one) for one in found.candidates}


def test_the_strongest_that_isolates_and_works_is_taken() -> None:
    found = chosen(candidate(PLAIN), candidate(WEAK), candidate(MIDDLE), candidate(STRONG, ABSENT))

    assert found.driver().name == "middle"
    assert [one.name for one in found.candidates] == ["strong", "middle", "weak", "plain"]
    assert reasons(found) == {
        "strong": "there is no jailer; install firecracker",
        "middle": "the strongest that isolates and works here",
        "weak": "works, and middle is stronger",
        "plain": "works, but does not isolate: it is taken when it is named (--driver plain) or no_sandbox is true",
    }


def test_without_isolation_only_on_request() -> None:
    candidates = (candidate(STRONG, SICK), candidate(PLAIN))

    assert chosen(*candidates, no_sandbox=True).driver().name == "plain"
    assert chosen(candidate(PLAIN), driver="plain").driver().name == "plain"
    for no_sandbox in (None, False):
        with pytest.raises(MachineError) as caught:
            chosen(*candidates, no_sandbox=no_sandbox).driver()
        text = str(caught.value)
        assert "\n  strong: its guests do not boot; load kvm_intel\n" in text
        assert "\n  plain: works, but does not isolate" in text
        assert "nex node preflight --install" in text
        assert "--driver process" in text


def test_with_no_sandbox_what_isolates_is_still_better() -> None:
    found = chosen(candidate(PLAIN), candidate(WEAK), no_sandbox=True)

    assert found.driver().name == "weak"
    assert chosen(candidate(PLAIN), no_sandbox=True).why(candidate(PLAIN)).startswith("works, but does not isolate")


def test_a_named_driver_is_taken_or_none() -> None:
    assert chosen(candidate(WEAK), driver="weak").driver().name == "weak"
    with pytest.raises(
        MachineError, match=r"^the driver weak cannot work here: its guests do not boot; load kvm_intel$"
    ):
        chosen(candidate(WEAK, SICK), driver="weak").driver()
    with pytest.raises(UsageError, match="no_sandbox is false, but machines of the driver 'plain' do not isolate"):
        chosen(candidate(PLAIN), driver="plain", no_sandbox=False).driver()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Driver]]:
    """The drivers that are installed, by name; to be filled."""
    kinds: dict[str, type[Driver]] = {}

    def load(name: str) -> type[Driver]:
        if name not in kinds:
            raise NotFoundError("driver", name)
        return kinds[name]

    monkeypatch.setattr(registry, "names", lambda: tuple(kinds))
    monkeypatch.setattr(registry, "load", load)
    return kinds


async def test_all_are_looked_at_and_one_that_fails_hides_no_other(installed: dict[str, type[Driver]]) -> None:
    failing = kind("failing", 40, ValueError("a fault"))
    slow = kind("slow", 50, TimeoutError())
    installed |= {"failing": failing, "slow": slow, "weak": WEAK}

    found = await choice.look(told())

    assert found.driver().name == "weak"
    assert reasons(found)["failing"] == "it failed when it was asked: ValueError: a fault"
    assert "whether it works" in reasons(found)["slow"]


async def test_only_the_named_one_is_looked_at(installed: dict[str, type[Driver]]) -> None:
    installed |= {"strong": STRONG, "weak": WEAK}

    assert [one.name for one in (await choice.look(told(driver="weak"))).candidates] == ["weak"]
    with pytest.raises(MachineError, match="no such driver: gone"):
        (await choice.look(told(driver="gone"))).driver()


async def test_options_that_it_does_not_take_are_told_as_they_are(installed: dict[str, type[Driver]]) -> None:
    class Choosy(WEAK):  # type: ignore[valid-type,misc]  # made above
        def __init__(self, context: DriverContext) -> None:
            if context.config:
                raise UsageError(f"there is no option {', '.join(context.config)}")
            super().__init__(context)

    installed |= {"weak": Choosy, "middle": MIDDLE}

    with pytest.raises(UsageError, match="there is no option a"):
        (await choice.look(told(driver="weak", driver_options={"a": 1}))).driver()
    by_name = await choice.look(told(driver_options={"weak": {"a": 1}}))
    assert by_name.driver().name == "middle"
    assert "there is no option a" in reasons(by_name)["weak"]


def test_a_driver_is_given_what_the_configuration_says(installed: dict[str, type[Driver]]) -> None:
    installed |= {"weak": WEAK}
    config = told(driver_options={"weak": {"a": 1}}, rate_limiters={"iops": {}}, workload_types=("wasm",))

    context = choice.made(config, "weak").context

    assert context.state == Path("/state/driver/weak")
    assert (context.config, context.rate_limiters) == ({"a": 1}, {"iops": {}})
    assert (context.template, context.images) == (config.machine_template, config.images)
    assert context.workload_types == ("wasm",)
