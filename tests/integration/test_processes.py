"""Real processes: they end as they say, are always reaped, and take their group along."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest

from nex.processes import Child, Exit, LineReader, children_of, fork_process
from nex.testing.processes import ended, is_alive

ENVIRONMENT = {"PATH": os.environ["PATH"]}


class Shell:
    """A shell command and the lines it prints."""

    def __init__(self, command: str) -> None:
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        reading, writing = os.pipe()
        self.child = Child.spawn(["sh", "-c", command], env=ENVIRONMENT, stdout=writing)
        os.close(writing)
        self.reader = LineReader(reading, self.lines.put_nowait)

    async def line(self) -> str:
        async with asyncio.timeout(10):
            return await self.lines.get()


@pytest.mark.parametrize(
    ("command", "how", "text"),
    [
        ("exit 0", Exit(0), "exit code 0"),
        ("exit 3", Exit(3), "exit code 3"),
        ("kill -9 $$", Exit(-1, 9), "signal SIGKILL"),
        ("kill -TERM $$", Exit(-1, 15), "signal SIGTERM"),
    ],
)
async def test_how_a_process_ended_is_told(command: str, how: Exit, text: str) -> None:
    child = Child.spawn(["sh", "-c", command], env=ENVIRONMENT)
    assert await child.wait() == how
    assert str(how) == text
    assert child.returned == how
    assert await child.wait() == how, "and told again"
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)  # noqa: ASYNC222 - it was reaped


async def test_many_may_wait_and_one_may_give_up() -> None:
    child = Child.spawn(["sleep", "60"], env=ENVIRONMENT)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await child.wait()
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(child.wait()) for _ in range(3)]
        child.signal(signal.SIGKILL)
    assert {w.result() for w in waits} == {Exit(-1, 9)}
    child.signal(signal.SIGKILL)  # to nobody: no error


async def test_a_program_that_cannot_be_executed_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        Child.spawn(["/no/such/program"], env={})


async def test_stop_lets_a_willing_process_finish() -> None:
    shell = Shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done")
    assert await shell.line() == "up"
    assert await shell.child.stop(10) == Exit(7)
    assert await shell.line() == "bye"
    await shell.reader.wait()


async def test_stop_kills_an_unwilling_process() -> None:
    shell = Shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
    assert await shell.line() == "up"
    assert await shell.child.stop(0.05) == Exit(-1, 9)
    await shell.reader.wait()


async def test_a_cancelled_stop_has_killed_all_the_same() -> None:
    shell = Shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
    assert await shell.line() == "up"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await shell.child.stop(60)
    assert shell.child.returned == Exit(-1, 9)
    await shell.reader.wait()


@pytest.mark.parametrize("how", ["itself", "stop", "kill"])
async def test_what_is_left_of_a_group_ends_with_its_leader(how: str) -> None:
    ending = "" if how == "itself" else "; wait"
    shell = Shell(f"(trap '' TERM; exec sleep 60) & echo $!{ending}")
    member = int(await shell.line())
    if how == "stop":
        await shell.child.stop(0.05)
    elif how == "kill":
        await shell.child.kill()
    await shell.child.wait()
    await shell.reader.wait()
    await ended(member)
    assert not is_alive(member)


async def test_children_die_with_a_parent_that_is_killed() -> None:
    program = (
        "import asyncio, os\n"
        "from nex.processes import Child\n"
        "spawned = Child.spawn(['sleep', '60'], env={'PATH': os.environ['PATH']})\n"
        "forked = Child.fork(lambda: __import__('time').sleep(60))\n"
        "print(spawned.pid, forked.pid, flush=True)\n"
        "asyncio.run(spawned.wait())\n"
    )
    reading, writing = os.pipe()
    parent = Child.spawn([sys.executable, "-c", program], env=ENVIRONMENT, stdout=writing)
    os.close(writing)
    lines: asyncio.Queue[str] = asyncio.Queue()
    reader = LineReader(reading, lines.put_nowait)
    async with asyncio.timeout(20):
        pids = [int(word) for word in (await lines.get()).split()]
    assert all(is_alive(pid) for pid in pids)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    for pid in pids:
        await ended(pid)
        assert not is_alive(pid)
    reader.close()


async def test_limits_are_set_before_the_program_runs() -> None:
    reading, writing = os.pipe()
    child = Child.spawn(
        ["sh", "-c", "ulimit -n"], env=ENVIRONMENT, stdout=writing, rlimits={resource.RLIMIT_NOFILE: 77}
    )
    os.close(writing)
    lines: list[str] = []
    reader = LineReader(reading, lines.append)
    assert await child.wait() == Exit(0)
    await reader.wait()
    assert lines == ["77"]


async def test_a_program_gets_no_file_and_no_variable_it_was_not_given() -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    shell = Shell(f"test -e /proc/self/fd/{leaked} && echo leaked; env; echo end")
    await shell.child.wait()
    await shell.reader.wait()
    os.close(leaked)
    printed = [shell.lines.get_nowait() for _ in range(shell.lines.qsize())]
    assert "leaked" not in printed
    assert {line.partition("=")[0] for line in printed} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD", "end"}


@pytest.mark.parametrize(
    ("main", "how"),
    [
        (lambda: None, Exit(0)),
        (lambda: sys.exit(5), Exit(5)),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), Exit(-1, 15)),
    ],
)
async def test_a_fork_runs_its_function_and_never_returns(main: object, how: Exit) -> None:
    assert callable(main)
    assert await Child.fork(main).wait() == how


async def test_a_fork_that_raises_says_so_and_ends_with_one() -> None:
    reading, writing = os.pipe()

    def main() -> None:
        os.dup2(writing, 2)
        raise ValueError("told")

    child = Child.fork(main, keep_fds=(writing,))
    os.close(writing)
    lines: list[str] = []
    reader = LineReader(reading, lines.append)
    assert await child.wait() == Exit(1)
    await reader.wait()
    assert lines[-1] == "ValueError: told"


async def test_a_fork_keeps_only_the_files_it_was_given() -> None:
    reading, writing = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)

    def main() -> None:
        kept = sorted(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        os.write(writing, f"{writing in kept} {other in kept} {reading in kept}\n".encode())

    child = Child.fork(main, keep_fds=(writing,))
    os.close(writing)
    os.close(other)
    lines: list[str] = []
    reader = LineReader(reading, lines.append)
    await child.wait()
    await reader.wait()
    assert lines == ["True False False"]


async def test_one_that_somebody_else_reaped_has_ended_all_the_same() -> None:
    pid = fork_process(lambda: None)
    child = Child(pid)
    os.waitpid(pid, 0)  # noqa: ASYNC222
    async with asyncio.timeout(10):
        assert (await child.wait()).code == -1


async def test_children_are_listed() -> None:
    child = Child.spawn(["sleep", "60"], env=ENVIRONMENT)
    assert child.pid in children_of(os.getpid())
    await child.kill()
    assert child.pid not in children_of(os.getpid())
    assert children_of(child.pid) == []


class TestLineReader:
    async def read(self, data: bytes, *, limit_bytes: int = 16384) -> list[str]:
        reading, writing = os.pipe()
        lines: list[str] = []
        reader = LineReader(reading, lines.append, limit_bytes=limit_bytes)
        os.write(writing, data)
        os.close(writing)
        async with asyncio.timeout(10):
            await reader.wait()
        return lines

    async def test_lines_are_split_and_an_unfinished_one_counts(self) -> None:
        assert await self.read(b"one\ntwo\r\n\nlast") == ["one", "two", "", "last"]

    async def test_nothing_is_no_line(self) -> None:
        assert await self.read(b"") == []

    async def test_a_long_line_comes_in_pieces(self) -> None:
        assert await self.read(b"a" * 25 + b"\nb\n", limit_bytes=10) == ["a" * 10, "a" * 10, "a" * 5, "b"]

    async def test_a_line_without_end_is_not_gathered(self) -> None:
        assert await self.read(b"x" * 25, limit_bytes=10) == ["x" * 10, "x" * 10, "x" * 5]

    async def test_what_is_no_utf8_is_replaced(self) -> None:
        assert await self.read(b"\xff\xfe\n") == ["\ufffd\ufffd"]

    async def test_closing_hands_over_what_is_left_and_can_be_done_twice(self) -> None:
        reading, writing = os.pipe()
        lines: asyncio.Queue[str] = asyncio.Queue()
        reader = LineReader(reading, lines.put_nowait)
        os.write(writing, b"whole\npart")
        assert await lines.get() == "whole"
        reader.close()
        reader.close()
        assert lines.get_nowait() == "part"
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"nobody reads")
        os.close(writing)


def test_being_dead_before_we_could_ask_for_the_parents_death_is_seen() -> None:
    # The parent given is not ours: as if it had ended between the fork and the request.
    program = "from nex.processes import die_with_parent; die_with_parent(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (1, "")
