# SPDX-License-Identifier: Apache-2.0
"""The planner (ingestd/core/storage/plan.h) for Python, through ctypes, for tests alone.

The library is compiled with NDEBUG: the tests check every invariant for
themselves, and an assertion that ends the process would keep Hypothesis from
finding the smallest example. The C tests and the fuzzer run with assertions.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from support.native import PURE_SOURCES, TESTS, build_library

# Without assertions, what only they look at is not used.
NDEBUG_FLAGS = ("-DNDEBUG", "-Wno-unused-variable", "-Wno-unused-parameter", "-Wno-unused-function")

PAGE_BYTES: Final = 4096
BOUNCE_REASONS: Final = ("head", "tail", "small", "boundary", "pressure", "trailer")


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("bytes", ctypes.c_size_t))


class Profile(ctypes.Structure):
    """struct plan_profile."""

    _fields_ = (
        ("mem_align", ctypes.c_uint32),
        ("block_bytes", ctypes.c_uint32),
        ("virt_mask", ctypes.c_uint32),
        ("iovecs_max", ctypes.c_uint32),
        ("batch_bytes_max", ctypes.c_uint32),
        ("copy_below", ctypes.c_uint32),
    )


class Fragment(ctypes.Structure):
    """struct plan_fragment."""

    _fields_ = (
        ("flow", ctypes.c_void_p),
        ("stream_offset", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint32),
        ("slack", ctypes.c_uint32),
        ("crc", ctypes.c_uint32),
    )


class Frame(ctypes.Structure):
    """struct frame."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("capacity", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("record_count", ctypes.c_uint32),
        ("payload_bytes", ctypes.c_uint64),
        ("last_extent", ctypes.c_void_p),
    )


class Batch(ctypes.Structure):
    """struct plan_batch."""

    _fields_ = (
        ("frame", Frame),
        ("iov", ctypes.POINTER(Iovec)),
        ("iov_count", ctypes.c_uint32),
        ("iov_capacity", ctypes.c_uint32),
        ("bounce", ctypes.c_void_p),
        ("bounce_used", ctypes.c_uint32),
        ("bounce_capacity", ctypes.c_uint32),
        ("payload_end", ctypes.c_uint32),
        ("direct_end", ctypes.c_void_p),
        ("checksum", ctypes.c_bool),
        ("direct_bytes", ctypes.c_uint64),
        ("padding_bytes", ctypes.c_uint64),
        ("bounced_bytes", ctypes.c_uint64 * len(BOUNCE_REASONS)),
    )


class FrameBatch(ctypes.Structure):
    """struct frame_batch."""

    _fields_ = (
        ("store_uuid", ctypes.c_char_p),
        ("segment_sequence", ctypes.c_uint64),
        ("batch_index", ctypes.c_uint32),
        ("batches_committed", ctypes.c_uint32),
        ("block_bytes", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("batch_bytes", ctypes.c_uint64),
        ("made_ns", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Planner:
    """The library's functions, with their C names less the prefix."""

    profile_is_usable: Callable[..., bool]
    bounce_bytes_min: Callable[..., int]
    begin: Callable[..., None]
    add: Callable[..., int]
    bytes: Callable[..., int]
    is_empty: Callable[..., bool]
    finish: Callable[..., int]
    crc32c: Callable[..., int]


@functools.cache
def load_planner() -> Planner:
    """Compile the pure core and load it; raises RuntimeError if the structs differ."""
    sources = [*PURE_SOURCES, TESTS / "core" / "plan_export.c"]
    library = ctypes.CDLL(str(build_library("plan_library", sources, flags=NDEBUG_FLAGS)))
    structs = (Profile, Fragment, Batch, FrameBatch)
    sizes = list((ctypes.c_uint32 * len(structs)).in_dll(library, "plan_struct_bytes"))
    if sizes != [ctypes.sizeof(struct) for struct in structs]:
        raise RuntimeError(f"tests/support/plan.py lags behind plan.h: sizes in C are {sizes}")

    def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        found = getattr(library, name)
        found.restype = result
        found.argtypes = arguments
        return found  # type: ignore[no-any-return]

    u32, pointer = ctypes.c_uint32, ctypes.c_void_p
    return Planner(
        profile_is_usable=function("plan_profile_is_usable", ctypes.c_bool, pointer, u32, u32),
        bounce_bytes_min=function("plan_bounce_bytes_min", u32, pointer),
        begin=function(
            "plan_begin", None, pointer, pointer, u32, pointer, u32, pointer, u32, ctypes.c_bool
        ),
        add=function("plan_add", u32, pointer, pointer, pointer),
        bytes=function("plan_bytes", ctypes.c_uint64, pointer, pointer),
        is_empty=function("plan_is_empty", ctypes.c_bool, pointer),
        finish=function("plan_finish", ctypes.c_uint64, pointer, pointer, pointer),
        crc32c=function("frame_crc32c", u32, u32, ctypes.c_char_p, ctypes.c_uint64),
    )


class Memory:
    """Zeroed memory on a page boundary, read and written by offset."""

    def __init__(self, byte_count: int) -> None:
        rounded = -(-byte_count // PAGE_BYTES) * PAGE_BYTES
        self._map = mmap.mmap(-1, rounded)
        self.address: Final = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.size: Final = rounded

    def __getitem__(self, span: slice) -> bytes:
        return self._map[span]

    def __setitem__(self, span: slice, data: bytes) -> None:
        self._map[span] = data

    def fill(self, value: int) -> None:
        self._map[:] = bytes([value]) * self.size
