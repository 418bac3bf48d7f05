"""What a machine says before all else, and how little it takes for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nacl
import pytest

import nex
from nex.agent.channels import Channels
from nex.agent.early import handshake, introduce
from nex.errors import MessageError
from nex.protocol.agent import Credentials, Hello, Ready
from nex.protocol.channel import frame_hello, text_of

_HEAVY = {"asyncio", "dataclasses", "enum", "json", "msgspec", "nats", "pathlib", "re", "socket", "typing", "uvloop"}


def _hello(time_ns: int = 1) -> bytes:
    credentials = Credentials(url="nats://127.0.0.1:4222", jwt="a.b.c", seed="SU", secret=b"s" * 64)
    return Hello(machine_id="m1", time_ns=time_ns, entropy=b"e" * 32, credentials=credentials).encode()


def test_nothing_heavy_is_imported_before_the_machine_is_ready() -> None:
    # Without the site module: the .pth files of installed packages import what they like.
    ours = [str(Path(module.__file__ or "").parents[1]) for module in (nex, nacl)]
    code = f"import sys; sys.path += {ours}; import nex.agent.guest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout
    assert "nex.agent.early" in loaded.split()
    assert not _HEAVY & set(loaded.split())


def test_a_text_is_found_by_the_name_of_its_field() -> None:
    hello = _hello()
    assert [text_of(hello, name) for name in ("machine_id", "jwt", "seed")] == ["m1", "a.b.c", "SU"]
    assert text_of(hello, "password") == ""
    assert text_of(b"", "jwt") == ""


def test_the_handshake_is_a_ready_message() -> None:
    before = time.time_ns()
    ready = Ready.decode(handshake(_hello(), ("native", "wasm")))
    assert ready == Ready(
        version=nex.__version__, workload_types=("native", "wasm"), pid=os.getpid(), started_ns=ready.started_ns
    )
    assert before <= ready.started_ns <= time.time_ns()


def test_the_handshake_says_if_the_machine_rehearses() -> None:
    assert Ready.decode(handshake(_hello(), (), rehearses=True)).rehearses
    assert not Ready.decode(handshake(_hello(), ())).rehearses


def test_a_machine_whose_clock_stood_still_begins_at_its_hello() -> None:
    tomorrow = time.time_ns() + 86400 * 10**9
    assert Ready.decode(handshake(_hello(tomorrow), ())).started_ns == tomorrow


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        (b"{}", "machine_id"),
        (b'{"machine_id":"m1"}', "time_ns"),
        (b"no JSON", "malformed"),
        (_hello().replace(b":", b": "), "white space"),
    ],
)
def test_a_damaged_hello_is_refused_by_what_is_wrong_with_it(hello: bytes, says: str) -> None:
    host, guest = socket.socketpair()
    with host:
        host.sendall(frame_hello(hello))
        channels = Channels(guest.detach(), -1)
        with pytest.raises(MessageError, match=says):
            introduce(channels, ())
        os.close(channels.joined)
