from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.node.lifecycle import (
    CLEAN,
    LOST,
    MAX_BACKOFF_S,
    STABLE_S,
    Announce,
    Cancel,
    Command,
    Event,
    Exited,
    Failed,
    Forget,
    Lame,
    Launch,
    MachineLost,
    Phase,
    Release,
    Started,
    State,
    StopAgent,
    Stopped,
    StopWanted,
    Timer,
    Wait,
    backoff_s,
    begin,
    step,
)
from nex.processes import Exit

FUNCTION = State(phase=Phase.RUNNING, function=True, insistent=True, ran=True)
SERVICE = State(phase=Phase.RUNNING, insistent=True, ran=True)
ESSENTIAL = replace(SERVICE, essential=True)
BAD = Exit(3)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Started),
    st.builds(Failed, st.text()),
    st.builds(Exited, st.builds(Exit, st.integers(-1, 255)), st.floats(0, 1e6), st.sampled_from(["", "a limit"])),
    st.builds(MachineLost, st.floats(0, 1e6), st.booleans()),
    st.builds(StopWanted, st.booleans()),
    st.builds(Stopped, st.builds(Exit, st.integers(-1, 255))),
    st.builds(Lame),
    st.builds(Timer),
)


def run(state: State, *events: Event) -> tuple[State, list[Command]]:
    commands: list[Command] = []
    for event in events:
        state, more = step(state, event)
        commands += more
    return state, commands


def test_the_ordinary_life_of_a_function() -> None:
    state, first = begin(function=True, essential=False)
    assert first == (Launch(),)

    state, commands = run(state, Started(), StopWanted(), Stopped())

    assert state.phase is Phase.GONE
    assert commands == [Announce(), StopAgent(), Release(), Announce(CLEAN), Forget(keep=False)]


def test_a_failed_first_start_is_the_end() -> None:
    state, commands = run(begin(function=True, essential=True)[0], Failed("no"))

    assert state.phase is Phase.GONE
    assert commands == [Forget(keep=False)]


def test_a_restored_workload_tries_again_and_again() -> None:
    state, commands = run(begin(function=False, essential=False, insistent=True)[0], Failed("a"), Timer(), Failed("b"))

    assert state.phase is Phase.WAITING
    assert commands == [Wait(0.5), Launch(), Wait(1.0)]


@pytest.mark.parametrize(
    ("state", "event", "comes_back"),
    [
        (SERVICE, Exited(CLEAN), False),
        (SERVICE, Exited(BAD), False),
        (ESSENTIAL, Exited(CLEAN), False),
        (ESSENTIAL, Exited(BAD), True),
        (SERVICE, MachineLost(), False),
        (SERVICE, MachineLost(ours=True), True),
        (ESSENTIAL, MachineLost(), True),
        (FUNCTION, MachineLost(), True),
    ],
)
def test_who_comes_back(state: State, event: Event, comes_back: bool) -> None:
    after, commands = step(state, event)

    assert after.phase is (Phase.WAITING if comes_back else Phase.GONE)
    assert commands[0] == Release()
    assert isinstance(commands[1], Announce)
    assert isinstance(commands[2], Wait if comes_back else Forget)


def test_a_lost_machine_is_replaced_at_once_the_first_time_and_then_with_patience() -> None:
    _, commands = run(FUNCTION, MachineLost(), Timer(), Started(), MachineLost(), Timer(), Started(), MachineLost())

    assert [c.delay_s for c in commands if isinstance(c, Wait)] == [0.0, 1.0, 2.0]


def test_a_stable_run_makes_the_back_off_begin_anew() -> None:
    tired = replace(ESSENTIAL, restarts=8)

    state, commands = step(tired, Exited(BAD, STABLE_S))

    assert state.restarts == 1
    assert commands[-1] == Wait(0.5)


def test_a_lame_duck_restarts_no_service() -> None:
    state, _ = run(ESSENTIAL, Lame(), Exited(BAD))

    assert state.phase is Phase.GONE


def test_stopping_during_the_start_undoes_it_unannounced() -> None:
    state, commands = run(State(), StopWanted(), Failed("stopped"))

    assert state.phase is Phase.GONE
    assert commands == [Cancel(), Forget(keep=False)]


def test_a_start_that_wins_against_its_stop_is_stopped_and_announced_both_times() -> None:
    state, commands = run(State(), StopWanted(), Started(), Stopped())

    assert state.phase is Phase.GONE
    assert commands == [Cancel(), Announce(), StopAgent(), Release(), Announce(CLEAN), Forget(keep=False)]


def test_the_node_stops_and_keeps_the_record() -> None:
    _, commands = run(FUNCTION, StopWanted(keep=True), Stopped())

    assert commands[-1] == Forget(keep=True)


def test_who_wants_it_gone_for_good_wins() -> None:
    _, commands = run(FUNCTION, StopWanted(keep=True), StopWanted(keep=False), StopWanted(keep=True), MachineLost())

    assert commands[-2:] == [Announce(LOST), Forget(keep=False)]


def test_waiting_can_be_stopped() -> None:
    state, commands = run(replace(FUNCTION, phase=Phase.WAITING, ran=False), StopWanted())

    assert state.phase is Phase.GONE
    assert commands == [Forget(keep=False)]


@given(st.integers(0, 10_000))
def test_back_off_grows_and_is_bounded(restarts: int) -> None:
    assert 0 < backoff_s(restarts) <= backoff_s(restarts + 1) <= MAX_BACKOFF_S


@given(st.booleans(), st.booleans(), st.booleans(), st.lists(EVENTS, max_size=30))
def test_whatever_happens(function: bool, essential: bool, insistent: bool, events: list[Event]) -> None:
    state, _ = begin(function=function, essential=essential, insistent=insistent)
    announced = forgotten = 0
    for event in events:
        before = state
        state, commands = step(state, event)
        for command in commands:
            if isinstance(command, Announce):
                announced += 1 if command.how is None else -1
            forgotten += isinstance(command, Forget)
        assert announced in (0, 1), "deployed and undeployed alternate"
        assert announced == state.ran
        if before.phase is Phase.GONE:
            assert state.phase is Phase.GONE
            assert not commands
    assert forgotten == (state.phase is Phase.GONE), "forgotten exactly once, at the end"
    assert state.phase is not Phase.GONE or not announced


def test_a_limit_ends_a_workload_as_an_exit_and_is_announced() -> None:
    over = Exited(Exit(-1, 9), 1.0, "memory limit of 128 MiB exceeded")

    gone, commands = run(SERVICE, over)
    assert gone.phase is Phase.GONE
    assert commands == [Release(), Announce(Exit(-1, 9), over.reason), Forget(keep=False)]
    for state in (ESSENTIAL, FUNCTION):
        waiting, commands = run(state, over, Timer())
        assert waiting.phase is Phase.STARTING
        assert commands == [Release(), Announce(Exit(-1, 9), over.reason), Wait(backoff_s(0)), Launch()]


def test_even_a_good_exit_code_hides_no_limit() -> None:
    state, _ = run(ESSENTIAL, Exited(CLEAN, 1.0, "pids limit of 10 exceeded"))
    assert state.phase is Phase.WAITING


def test_a_limit_is_announced_of_a_workload_that_is_being_stopped() -> None:
    _, commands = run(SERVICE, StopWanted(), Exited(Exit(-1, 9), 1.0, "a limit"))
    assert Announce(Exit(-1, 9), "a limit") in commands
