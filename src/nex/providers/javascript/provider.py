"""JavaScript and TypeScript functions, run by Deno in worker processes without permissions.

A *classic script* is one whose value (that of its last expression) is the function; a *module* exports it by
``export default``. Both may be TypeScript; which of the two a source is, is found out by compiling it. The function
is called as ``function (subject, payload, {headers, env})`` with the real subject, the payload as `Uint8Array` and
the message's headers as an object of strings; it may be ``async``.

What it returns is the reply. Bytes (`Uint8Array`, `ArrayBuffer` and other views) go as they are. In a script every
other value goes as JSON, and no value at all as the text ``undefined``, as in Nex 0.2. In a module a string goes as
its UTF-8 text, ``undefined`` as an empty payload, any other value as JSON. ``new Reply(value, headers)`` answers with
headers.

There is: the language, Web APIs (`TextEncoder`, `URL`, `crypto`, streams, timers…), ``console`` (the workload's log,
levels kept), ``env``, the workload's environment, global and frozen, and the host services: asynchronous by
``import { kv, objectStore, messaging, http } from "nex"``, blocking as ``hostServices``. There is no access to files,
processes, the host's environment or a network; ``fetch`` is ``http.fetch``.

The function is loaded once per worker: what it keeps in variables may, or may not, be there at the next call. Timers
and promises that a call does not await stand still until the next call of that worker.
"""

from __future__ import annotations

import re
import resource
import socket
from functools import cache
from pathlib import Path
from urllib.parse import quote

import msgspec
from deno import find_deno_bin

from nex.errors import StartError
from nex.processes import Child, Confinement
from nex.protocol.agent import Limits
from nex.providers.pooled import PooledFunction
from nex.providers.spare import Spares
from nex.providers.worker import Launched, connected

__all__ = ["JavaScriptProvider"]

_WORKER = Path(__file__).with_name("worker.js")
# What `import … from "nex"` finds: the worker leaves it under a symbol.
_NEX = "export const { kv, objectStore, messaging, http, HostError, Reply } = globalThis[Symbol.for('nex')];"
_IMPORTS = msgspec.json.encode({"imports": {"nex": f"data:text/javascript,{quote(_NEX)}"}})
_FLAGS = (
    *("run", "--quiet", "--no-prompt", "--no-remote", "--no-npm", "--no-config", "--no-lock", "--no-code-cache"),
    f"--import-map=data:application/json,{quote(_IMPORTS)}",
)
# A cache folder that cannot be made: Deno then keeps its caches in memory, and leaves no file behind.
_ENVIRONMENT = {
    "DENO_DIR": "/dev/null/none",
    "DENO_EMIT_CACHE_MODE": "disable",  # or it tries to write what it translated, again and again, for 150 ms
    "DENO_NO_UPDATE_CHECK": "1",
    "MALLOC_ARENA_MAX": "1",  # one for each of its threads costs 1.2 MiB, and only one thread has much to do
    "NO_COLOR": "1",
}
# V8 reserves 512 MiB of address space for code, which counts as data; Deno itself needs some 30 MiB.
_BASE_DATA_BYTES = 576 * 2**20


_spares = Spares()
_NOT_IN_NAMES = re.compile(r"[^\w.-]")
_find_deno = cache(find_deno_bin)


def _worker(memory_bytes: int, confinement: Confinement) -> Launched:
    heap = f"--v8-flags=--expose-gc,--max-old-space-size={max(memory_bytes >> 20, 8)}"
    aside, theirs = socket.socketpair()

    def start(sock: socket.socket) -> Child:
        return Child.spawn(
            [_find_deno(), *_FLAGS, heap, _WORKER],
            env=_ENVIRONMENT,
            cwd=Path("/"),
            stdin=sock.fileno(),
            stdout=sock.fileno(),
            stderr=theirs.fileno(),
            # The heap has its own limit; buffers lie outside of it and count as data.
            rlimits={resource.RLIMIT_DATA: _BASE_DATA_BYTES + 2 * memory_bytes, resource.RLIMIT_CORE: 0},
            confinement=confinement,
        )

    try:
        return *connected(start), aside
    except BaseException:
        aside.close()
        raise
    finally:
        theirs.close()


class JavaScriptProvider(PooledFunction):
    """Runs a JavaScript function."""

    @classmethod
    def prepare(cls) -> None:
        """As the seam says."""
        _find_deno()  # the first time, it imports the build settings of Python, which are large

    @classmethod
    def start_spare(cls, confinement: Confinement) -> None:
        """As the seam says: a worker with the memory that functions have unless they ask for more or less."""
        _spares.start(lambda: _worker(Limits().memory_bytes, confinement))

    @classmethod
    async def drop_spare(cls) -> None:
        """As the seam says."""
        await _spares.drop()

    @classmethod
    def rehearsal(cls) -> bytes:
        """As the seam says: a script in TypeScript, which is tried in all ways there are to load one."""
        return b"(subject: string, payload: Uint8Array) => payload"

    async def start(self) -> None:
        """As the seam says; a spare with another limit of memory is of no use."""
        if self._limits.memory_bytes != Limits().memory_bytes:
            await self.drop_spare()
        await super().start()

    def _launch(self) -> Launched:
        return _spares.take() or _worker(self._limits.memory_bytes, self.workload.confinement)

    def _load(self) -> tuple[bytes, bytes]:
        try:
            source = self.workload.artifact.read_bytes()
            source.decode()
        except OSError as error:
            raise StartError(f"the artifact cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise StartError("the artifact is no JavaScript: it is not UTF-8 text") from error
        settings = {
            "name": _NOT_IN_NAMES.sub("_", self.workload.name) or "function",
            "environment": dict(self.workload.environment),
            "resultBytes": self._limits.result_bytes,
        }
        return msgspec.json.encode(settings), source
