# SPDX-License-Identifier: Apache-2.0
"""What may have to be sent again, against the plainest model: all bytes of the flow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from ingestd.client.backlog import READ_BYTES_MAX, BufferBacklog, FileBacklog
from ingestd.errors import SenderError, SystemCallError
from support.payload import Payload

# What can happen: so many bytes are written, or become durable (a share of those
# kept), or the connection is lost and resumed (at a share of those kept).
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "release", "resume", "read"]), st.integers(0, 100)),
    max_size=60,
)


def _read(backlog: BufferBacklog | FileBacklog, offset: int) -> bytes:
    """Everything from offset on, in whatever pieces it comes."""
    pieces = []
    while view := backlog.view(offset):
        pieces.append(bytes(view))
        offset += len(view)
    return b"".join(pieces)


@given(st.integers(1, 70), st.integers(0, 200), STEPS)
def test_buffer_keeps_what_is_not_durable(
    capacity: int, start: int, steps: list[tuple[str, int]]
) -> None:
    flow = bytearray(start)  # what came before this sender
    durable = start
    backlog = BufferBacklog(capacity, has_checksum=True)
    backlog.start(start)
    for number, (step, amount) in enumerate(steps):
        share = durable + (len(flow) - durable) * amount // 100
        if step == "put":
            data = bytes((number + n) % 256 for n in range(amount))
            count = backlog.put(memoryview(data))
            assert count > 0 or not data or len(flow) - durable == capacity
            flow += data[:count]
        elif step == "read":
            assert _read(backlog, share) == flow[share:]
        else:
            durable = share
            (backlog.release if step == "release" else backlog.start)(durable)
        assert backlog.end == len(flow)
        assert len(flow) - durable <= capacity
        assert _read(backlog, durable) == flow[durable:]
    assert backlog.crc == crc32c(bytes(flow[start:]))
    assert backlog.crc_offset == len(flow) - start


def test_buffer_without_checksum() -> None:
    backlog = BufferBacklog(10, has_checksum=False)
    backlog.start(0)
    assert backlog.put(memoryview(b"abc")) == 3
    assert backlog.crc is None


@given(st.lists(st.integers(0, 3 * READ_BYTES_MAX + 7), max_size=6), st.booleans())
def test_file_is_read_again_and_counted_once(offsets: list[int], has_checksum: bool) -> None:
    """Each offset is where a connection resumes, and half of what is left is sent over it."""
    payload = Payload(3, 3 * READ_BYTES_MAX + 7)
    data = payload.data()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        backlog = FileBacklog(file.fileno(), "file", len(data), has_checksum=has_checksum)
        for offset in [*offsets, 0]:
            backlog.start(offset)
            end = offset + (len(data) - offset) // 2 if offset else len(data)
            while offset < end:
                view = backlog.view(offset)
                assert view == data[offset : offset + len(view)]
                offset += len(view)
            backlog.release(offset)
        assert not backlog.view(len(data))
        assert backlog.crc == (crc32c(data) if has_checksum else None)


def test_file_that_is_shorter_than_what_is_stored(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with (tmp_path / "f").open("rb") as file:
        backlog = FileBacklog(file.fileno(), "f", 3, has_checksum=True)
        with pytest.raises(SenderError, match="f: has 3 bytes, but the flow has 4 already"):
            backlog.start(4)
        backlog.start(3)
        assert backlog.crc == crc32c(b"abc")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with (tmp_path / "f").open("ab") as file:
        backlog = FileBacklog(file.fileno(), "f", 3, has_checksum=True)
        with pytest.raises(SystemCallError, match="f: cannot be read: Bad file descriptor"):
            backlog.view(0)
