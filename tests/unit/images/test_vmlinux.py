"""Kernels as boot loaders load them, and what is in them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import NexError, UsageError
from nex.images.vmlinux import extract, version_of

VMLINUX = b"\x7fELF" + b"x" * 5000 + b"Linux version 6.1.0-56-cloud-amd64 (debian)" + b"y" * 5000


def bz_image(payload: bytes, *, protocol: int = 0x20F, sectors: int = 3, offset: int = 64) -> bytes:
    """A kernel by the x86 boot protocol: header, set-up code, decompressor, payload."""
    head = bytearray((sectors + 1) * 512)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + b"d" * offset + payload + b"tail"


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(VMLINUX),
        lzma.compress(VMLINUX) + struct.pack("<I", len(VMLINUX)),
        lzma.compress(VMLINUX, lzma.FORMAT_ALONE) + struct.pack("<I", len(VMLINUX)),
        bz2.compress(VMLINUX) + struct.pack("<I", len(VMLINUX)),
    ],
    ids=["gzip", "xz", "lzma", "bzip2"],
)
def test_a_packed_kernel_is_unpacked(payload: bytes) -> None:
    assert extract(bz_image(payload)) == VMLINUX


def test_an_unpacked_kernel_is_as_it_is() -> None:
    assert extract(VMLINUX) is VMLINUX


def test_a_kernel_for_arm_is_unpacked() -> None:
    image = b"MZ" + bytes(54) + b"ARM\x64" + b"x" * 100
    assert extract(image) == image
    assert extract(gzip.compress(image)) == image


def test_the_version_is_the_one_of_its_modules() -> None:
    assert version_of(VMLINUX) == "6.1.0-56-cloud-amd64"
    assert version_of(b"nothing") == ""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no Linux kernel"),
        (b"#!/bin/sh" * 100, "no Linux kernel"),
        (bz_image(b"\x1f\x8bjunk"), "cannot be unpacked"),
        (bz_image(b"\x89LZO"), "packed in an unknown way"),
        (bz_image(gzip.compress(b"no kernel")), "is no kernel"),
        (bz_image(gzip.compress(VMLINUX), protocol=0x0207), "too old"),
        (bz_image(gzip.compress(VMLINUX))[:600], "packed in an unknown way"),
    ],
)
def test_what_is_no_kernel_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        extract(data)


@given(st.binary(max_size=2000).map(lambda tail: bz_image(b"")[:0x210] + tail))
def test_no_bytes_do_more_than_fail(data: bytes) -> None:
    try:
        extract(data)
    except NexError:
        return
