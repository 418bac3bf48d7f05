from __future__ import annotations

import ctypes
import struct

from nex.providers.wasm_streams import WasiFunctions

_MEMORY_BYTES = 128 << 20
_VECTORS = 64


def test_more_is_written_to_the_log_than_a_size_can_tell() -> None:
    """Each of the vectors is the whole memory: 8 GiB."""
    memory = memoryview(bytearray(_MEMORY_BYTES))
    for number in range(_VECTORS):
        struct.pack_into("<II", memory, 8 * number, 0, _MEMORY_BYTES)
    logged: list[int] = []
    wasi = WasiFunctions(lambda: memory)
    wasi.load(1024, lambda data: logged.append(len(data)))
    arguments = ctypes.create_string_buffer(struct.pack("<I12xI12xI12xI12x", 2, 0, _VECTORS, 8 * _VECTORS))
    _, _, write = wasi.functions["fd_write"]
    assert write(ctypes.addressof(arguments)) == 0
    assert logged == [65536] * _VECTORS
    assert struct.unpack_from("<I", memory, 8 * _VECTORS) == (_VECTORS * _MEMORY_BYTES & 0xFFFFFFFF,)
