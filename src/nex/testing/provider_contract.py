"""What every provider must do, as tests: inherit from `FunctionContract` or `ServiceContract` and give the fixtures.

The programs are obedient: a function does what its payload says, a service what its first argument says. So one set of
tests drives every engine.
"""

# ruff: noqa: S101, PLR2004, ASYNC240 - these are tests, though they live in the package

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from nex.errors import CallError, CallFailed, CallOverloaded, CallTimedOut, CallTooLarge, StartError
from nex.processes import Exit
from nex.protocol.agent import Limits
from nex.providers.base import Function, Invocation, Result, Service, Workload

__all__ = ["FunctionContract", "LogLines", "ServiceContract"]

MIB = 1024 * 1024


class LogLines(list[tuple[str, str]]):
    """A log that keeps its lines, and can be waited on."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, level: str, text: str) -> None:
        """Take a line."""
        self.append((level, text))
        self._more.set()

    async def wait_for(self, text: str) -> None:
        """Wait until a line has come that holds ``text``."""
        async with asyncio.timeout(10):
            while not any(text in line for _, line in self):
                self._more.clear()
                await self._more.wait()


class _Contract:
    @pytest.fixture
    def lines(self) -> LogLines:
        """Where the workload's output goes."""
        return LogLines()

    @pytest.fixture
    def workload(self, program: Path, tmp_path: Path) -> Workload:
        """The obedient program, ready to be started."""
        folder = tmp_path / "folder"
        folder.mkdir()
        artifact = tmp_path / "artifact"
        artifact.write_bytes(program.read_bytes())
        return Workload(
            id="w1",
            namespace="default",
            name="obedient",
            type="test",
            artifact=artifact,
            folder=folder,
            environment={"GREETING": "hello world"},
            limits=Limits(timeout_s=1.0, memory_bytes=64 * MIB, result_bytes=MIB),
        )


class FunctionContract(_Contract):
    """What a function must do. Give the fixtures ``provider`` and ``program``.

    The program answers by its payload: ``echo:`` and any bytes, ``subject``, ``variable:NAME`` and ``header:NAME``
    (empty if there is none), ``fail``, ``spin`` (for ever), ``allocate`` (without end), ``large:N`` (N bytes),
    ``log:TEXT``, ``flood`` (endless output to the log), ``variables`` (all names, separated by commas).
    """

    async def test_payloads_go_through_unchanged(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """Whatever the bytes, whatever their number."""
        async with _running(provider(workload, lines)) as call:
            for data in (b"", bytes(range(256)), "ä€😀".encode(), b"x" * 65536, os.urandom(900_000)):
                assert (await call(b"echo:" + data)).payload == data

    async def test_it_gets_the_real_subject_and_headers(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """Both are what the message had."""
        async with _running(provider(workload, lines)) as call:
            assert (await call(b"subject", subject="orders.new.17")).payload == b"orders.new.17"
            assert (await call(b"header:Trace-Id", headers={"Trace-Id": "a b=c\u00e4"})).payload == "a b=cä".encode()
            assert (await call(b"header:Trace-Id")).payload == b""

    async def test_it_gets_its_environment_and_no_other(
        self, provider: type[Function], workload: Workload, lines: LogLines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The agent's own environment is out of its reach."""
        monkeypatch.setenv("AGENT_SECRET", "hidden")
        async with _running(provider(workload, lines)) as call:
            assert (await call(b"variable:GREETING")).payload == b"hello world"
            assert (await call(b"variable:AGENT_SECRET")).payload == b""
            assert (await call(b"variables")).payload == b"GREETING"

    async def test_a_failure_is_told_and_the_next_call_is_served(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """One failed call is one failed call."""
        async with _running(provider(workload, lines)) as call:
            with pytest.raises(CallFailed) as failure:
                await call(b"fail")
            text = str(failure.value)
            assert text
            assert text.isprintable()
            assert (await call(b"echo:next")).payload == b"next"

    async def test_a_call_that_never_ends_is_cut_off(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """At the time limit, and the next call is served."""
        async with _running(provider(workload, lines)) as call:
            started = time.monotonic()
            with pytest.raises(CallTimedOut):
                await call(b"spin")
            assert 0.99 <= time.monotonic() - started < 4, "not far over the limit, even on a busy machine"
            assert (await call(b"echo:next")).payload == b"next"

    async def test_memory_is_limited(self, provider: type[Function], workload: Workload, lines: LogLines) -> None:
        """A call that takes and takes fails, and the next call is served."""
        workload = replace(workload, limits=Limits(timeout_s=20.0, memory_bytes=32 * MIB))
        async with _running(provider(workload, lines)) as call:
            with pytest.raises(CallFailed, match="memory"):
                await call(b"allocate")
            assert (await call(b"echo:next")).payload == b"next"

    async def test_results_are_limited(self, provider: type[Function], workload: Workload, lines: LogLines) -> None:
        """A result may be as large as the limit and no larger."""
        workload = replace(workload, limits=Limits(result_bytes=100_000))
        async with _running(provider(workload, lines)) as call:
            assert len((await call(b"large:100000")).payload) == 100_000
            for size in (100_001, 20_000_000):
                with pytest.raises(CallTooLarge):
                    await call(b"large:%d" % size)
            assert (await call(b"echo:next")).payload == b"next"

    async def test_output_becomes_log_lines(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """Line by line, before the call is answered."""
        async with _running(provider(workload, lines)) as call:
            await call(b"log:first\nsecond")
            assert [text for _, text in lines] == ["first", "second"]

    async def test_a_flood_of_output_hurts_nobody(self, provider: type[Function], workload: Workload) -> None:
        """It is cut off like any other endless call, and every line is of bounded length."""
        count = 0

        def take(_level: str, text: str) -> None:
            nonlocal count
            assert len(text) <= 16384
            count += 1

        async with _running(provider(workload, take)) as call:
            with pytest.raises(CallTimedOut):
                await call(b"flood")
            assert count > 10
            assert (await call(b"echo:next")).payload == b"next"

    async def test_calls_wait_in_a_bounded_queue(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """One at work, two waiting, the next is turned away at once."""
        workload = replace(workload, limits=Limits(timeout_s=1.0, queue=2))
        async with _running(provider(workload, lines)) as call, asyncio.TaskGroup() as group:
            spinning = group.create_task(_outcome(call(b"spin")))
            waiting = [group.create_task(_outcome(call(b"echo:%d" % n))) for n in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(CallOverloaded):
                await call(b"echo:too many")
            assert isinstance(await spinning, CallTimedOut)
            assert [getattr(await task, "payload", None) for task in waiting] == [b"0", b"1"]

    async def test_calls_run_side_by_side(self, provider: type[Function], workload: Workload, lines: LogLines) -> None:
        """As many as `parallel` says: three endless calls are cut off at the same time, not one after the other."""
        workload = replace(workload, limits=Limits(timeout_s=1.0, parallel=3))
        async with _running(provider(workload, lines)) as call, asyncio.TaskGroup() as group:
            started = time.monotonic()
            calls = [group.create_task(_outcome(call(b"spin"))) for _ in range(3)]
            assert [type(await task) for task in calls] == [CallTimedOut] * 3
            assert time.monotonic() - started < 3, "one after the other takes three seconds"

    async def test_a_caller_may_give_up(self, provider: type[Function], workload: Workload, lines: LogLines) -> None:
        """The function is of use to others afterwards."""
        async with _running(provider(workload, lines)) as call:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await call(b"spin")
            assert (await call(b"echo:next")).payload == b"next"

    async def test_many_calls_at_once_get_their_own_answers(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """Nothing is mixed up."""
        workload = replace(workload, limits=Limits(parallel=2))
        async with _running(provider(workload, lines)) as call:
            results = await asyncio.gather(*(call(b"echo:%d" % n) for n in range(200)))
            assert [result.payload for result in results] == [b"%d" % n for n in range(200)]

    async def test_stop_finishes_what_is_under_way(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """Then there are no more calls; stopping again does no harm."""
        function = provider(workload, lines)
        assert await function.stop(0) == Exit(0)
        function = provider(workload, lines)
        await function.start()
        under_way = [function.call(Invocation("s", b"echo:%d" % n)) for n in range(3)]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call) for call in under_way]
            await asyncio.sleep(0)
            assert await function.stop(5) == Exit(0)
        assert [task.result().payload for task in calls] == [b"0", b"1", b"2"]
        with pytest.raises(CallFailed):
            await function.call(Invocation("s", b"echo:late"))
        assert await function.stop(5) == Exit(0)
        assert list(workload.folder.iterdir()) == []

    async def test_stop_does_not_wait_for_ever(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """What runs longer than the grace is cut off."""
        workload = replace(workload, limits=Limits(timeout_s=60.0))
        function = provider(workload, lines)
        await function.start()
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_outcome(function.call(Invocation("s", b"spin"))))
            await asyncio.sleep(0)
            assert await function.stop(0.1) == Exit(0)
        assert isinstance(call.result(), CallFailed)

    @pytest.mark.parametrize("content", [b"", b"\x7fELF nothing of ours", b"\xff\xfe\x00", b"\0asm"])
    async def test_what_is_no_program_does_not_start(
        self, provider: type[Function], workload: Workload, lines: LogLines, content: bytes
    ) -> None:
        """Nothing is left of it, and the text can be shown."""
        workload.artifact.write_bytes(content)
        function = provider(workload, lines)
        with pytest.raises(StartError) as failure:
            await function.start()
        assert str(failure.value).isprintable()

    async def test_a_missing_artifact_does_not_start(
        self, provider: type[Function], workload: Workload, lines: LogLines
    ) -> None:
        """It is told, and nothing is left."""
        workload.artifact.unlink()
        with pytest.raises(StartError):
            await provider(workload, lines).start()


class ServiceContract(_Contract):
    """What a service must do. Give the fixtures ``provider`` and ``program``.

    The program acts by its first argument: ``exit N``; ``print TEXT…`` (each on a line of standard output, and on
    standard error, and exits); ``wait`` (prints ``ready``, exits with 7 at TERM); ``stubborn`` (prints ``ready``,
    ignores TERM); ``abort`` (ends itself by a signal); ``daemon stay`` or ``daemon go`` (leaves two processes behind,
    one of them in a session of its own, prints their ids as ``left N`` and then ``ready``, and waits or exits);
    ``variable NAME`` and ``folder`` (prints it); ``line N`` (a line of N bytes).
    """

    async def test_it_ends_by_itself(self, provider: type[Service], workload: Workload, lines: LogLines) -> None:
        """The exit code is told, as often as it is asked for."""
        service = provider(replace(workload, argv=("exit", "3")), lines)
        await service.start()
        assert await service.wait() == Exit(3)
        assert await service.wait() == Exit(3)
        assert await service.stop(1) == Exit(3)

    async def test_a_signal_is_told(self, provider: type[Service], workload: Workload, lines: LogLines) -> None:
        """It is no exit code."""
        service = provider(replace(workload, argv=("abort",)), lines)
        await service.start()
        assert await service.wait() == Exit(-1, signal.SIGABRT)

    async def test_its_output_is_logged_whole(
        self, provider: type[Service], workload: Workload, lines: LogLines
    ) -> None:
        """Standard output as INFO, standard error as ERROR; all of it is there when `wait` returns."""
        service = provider(replace(workload, argv=("print", "one", "two", "ü")), lines)
        await service.start()
        assert await service.wait() == Exit(0)
        for level in ("INFO", "ERROR"):
            assert [text for said, text in lines if said == level] == ["one", "two", "ü"]

    async def test_long_lines_come_in_pieces(
        self, provider: type[Service], workload: Workload, lines: LogLines
    ) -> None:
        """No line is longer than 16 KiB, and nothing is lost."""
        service = provider(replace(workload, argv=("line", "100000")), lines)
        await service.start()
        await service.wait()
        assert max(len(text) for _, text in lines) <= 16384
        assert sum(len(text) for _, text in lines) == 100_000

    async def test_environment(
        self, provider: type[Service], workload: Workload, lines: LogLines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own, nothing of the agent's."""
        monkeypatch.setenv("AGENT_SECRET", "hidden")
        for name, value in (("GREETING", "hello world"), ("AGENT_SECRET", ""), ("PATH", "")):
            lines.clear()
            service = provider(replace(workload, argv=("variable", name)), lines)
            await service.start()
            await service.wait()
            assert lines == [("INFO", value)]

    async def test_it_works_in_its_own_folder(
        self, provider: type[Service], workload: Workload, lines: LogLines
    ) -> None:
        """And nowhere else."""
        service = provider(replace(workload, argv=("folder",)), lines)
        await service.start()
        await service.wait()
        assert [Path(text).resolve() for _, text in lines] == [workload.folder.resolve()]

    async def test_stop_asks_first(self, provider: type[Service], workload: Workload, lines: LogLines) -> None:
        """TERM, and time to end in good order."""
        service = provider(replace(workload, argv=("wait",)), lines)
        assert await service.stop(1) == Exit(0)
        service = provider(replace(workload, argv=("wait",)), lines)
        await service.start()
        await lines.wait_for("ready")
        assert await service.stop(10) == Exit(7)
        assert await service.stop(10) == Exit(7)

    async def test_stop_insists(self, provider: type[Service], workload: Workload, lines: LogLines) -> None:
        """KILL for what does not listen."""
        service = provider(replace(workload, argv=("stubborn",)), lines)
        await service.start()
        await lines.wait_for("ready")
        assert await service.stop(0.1) == Exit(-1, signal.SIGKILL)

    @pytest.mark.parametrize("stopped", [True, False])
    async def test_nothing_is_left_behind(
        self, provider: type[Service], workload: Workload, lines: LogLines, stopped: bool
    ) -> None:
        """Not even what hid in a session of its own, whether the service is stopped or ends by itself."""
        service = provider(replace(workload, argv=("daemon", "stay" if stopped else "go")), lines)
        await service.start()
        await lines.wait_for("ready")
        hidden = [int(text.removeprefix("left ")) for _, text in lines if text.startswith("left ")]
        assert len(hidden) == 2
        if stopped:
            await service.stop(5)
        async with asyncio.timeout(10):
            await service.wait()
        assert not any(Path(f"/proc/{pid}").exists() for pid in hidden)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"", "no ELF"), (b"#!/bin/sh\n", "script"), (b"\x7fELF\x02\x01\x01", "truncated"), (b"MZ" * 100, "no ELF")],
    )
    async def test_what_is_no_program_does_not_start(
        self, provider: type[Service], workload: Workload, lines: LogLines, content: bytes, reason: str
    ) -> None:
        """The text says why."""
        workload.artifact.write_bytes(content)
        with pytest.raises(StartError, match=reason):
            await provider(workload, lines).start()


class _Call(Protocol):
    def __call__(
        self, payload: bytes, *, subject: str = "a.b", headers: dict[str, str] | None = None
    ) -> Coroutine[Any, Any, Result]: ...


@contextlib.asynccontextmanager
async def _running(function: Function) -> AsyncGenerator[_Call]:
    """Starts a function, hands out a short way to call it, and stops it."""

    def call(
        payload: bytes, *, subject: str = "a.b", headers: dict[str, str] | None = None
    ) -> Coroutine[Any, Any, Result]:
        return function.call(Invocation(subject, payload, headers))

    await function.start()
    try:
        yield call
    finally:
        await function.stop(0)


async def _outcome(call: Coroutine[Any, Any, Result]) -> Result | Exception:
    try:
        return await call
    except CallError as error:
        return error
