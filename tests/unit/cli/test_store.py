# SPDX-License-Identifier: Apache-2.0
"""Commands on a store, with a made-up image in place of a real one: what they print, where."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingestd.cli import main
from ingestd.cli.cat_command import PROGRESS_BYTES_MIN
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.errors import FlowNotFoundError, StoreDamagedError, UsageError
from ingestd.store.device.stacking import layers_of
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.flows import Flow
from ingestd.store.read.verify import DAMAGE, DOUBT, Discrepancy, VerifyReport

Capture = pytest.CaptureFixture[str]
BinaryCapture = pytest.CaptureFixture[bytes]

CONTENT = bytes(range(256)) * 16


def _flow(number: int, **fields: Any) -> Flow:
    known: dict[str, Any] = {
        "flow": f"{number:08x}-0000-4000-8000-000000000000",
        "name": None,
        "peer": "192.0.2.1:4000",
        "listener": "default",
        "state": "sealed",
        "bytes": len(CONTENT),
        "durable_bytes": len(CONTENT),
        "started": "2026-01-02T03:04:05.678901Z",
        "ended": "2026-01-02T03:04:06.000000Z",
        "checksum": "crc32c:0a0b0c0d",
    }
    return Flow(**(known | fields))


SUPERBLOCK = Superblock(
    store_uuid=bytes(range(16)),
    generation=3,
    store_bytes=64 << 20,
    segments_offset=1 << 20,
    segment_bytes=8 << 20,
    segment_count=7,
    block_bytes=4096,
    label="detector \x1b[2J",
    created_ns=1_700_000_000_000_000_000,
)


class MadeUpImage:
    """What read_image() returns, as far as commands look at it."""

    def __init__(self, path: str, flows: list[Flow]) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.device = SimpleNamespace(layers=layers_of(file.fileno(), path))
        self.flows = flows
        self.removed: list[Flow] = []
        self.removed_count = 0
        self.superblock = SUPERBLOCK
        self.served = False
        self.warnings: list[str] = []
        self.segments = [
            SegmentImage(1, SegmentState.CLOSED, payload_bytes=5000),
            SegmentImage(7, SegmentState.DAMAGED),
        ]
        self.is_closed = False

    def segment_counts(self) -> dict[str, int]:
        return {"free": 5, "open": 1, "closed": 1, "damaged": 0}

    def find(self, prefix: str) -> Flow:
        found = [flow for flow in self.flows if flow.flow.startswith(prefix)]
        if len(found) != 1:
            raise FlowNotFoundError(f"{self.path} has no flow {prefix!r}")
        return found[0]

    def __enter__(self) -> MadeUpImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MadeUpImage]:
    """The image that every command will find; commands must close it."""
    store = tmp_path / "store"
    store.write_bytes(b"the store itself")
    image = MadeUpImage(str(store), [_flow(1), _flow(2, state="interrupted", name="run 7")])

    def read_flow(_image: Any, flow: Flow, offset: int, length: int | None) -> Iterator[bytes]:
        if offset > flow.bytes:
            raise UsageError(f"the offset {offset} lies behind the end")
        end = flow.bytes if length is None else min(flow.bytes, offset + length)
        return iter([CONTENT[offset:end][:100], CONTENT[offset:end][100:]])

    monkeypatch.setattr("ingestd.store.read.image.read_image", lambda path: image)
    monkeypatch.setattr("ingestd.store.read.reader.read_flow", read_flow)
    monkeypatch.setattr(
        "ingestd.daemon.workers.worker.device_profile",
        lambda path: DirectProfile(4, 512, 4095, 1024),
    )
    yield image
    assert image.is_closed


# --- ls --------------------------------------------------------------------------


def test_ls_is_a_table(image: MadeUpImage, capsys: Capture) -> None:
    assert main(["ls", image.path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "FLOW                                  STATE         SIZE  BYTES  STARTED"
        "               NAME   PEER",
        "00000001-0000-4000-8000-000000000000  sealed       4 KiB   4096  2026-01-02T03:04:05Z"
        "  -      192.0.2.1:4000",
        "00000002-0000-4000-8000-000000000000  interrupted  4 KiB   4096  2026-01-02T03:04:05Z"
        "  run 7  192.0.2.1:4000",
    ]


def test_ls_marks_what_has_lost_its_head(image: MadeUpImage, capsys: Capture) -> None:
    image.flows[0] = replace(image.flows[0], first_offset=1024)
    assert main(["ls", image.path]) == 0
    _, cut, whole = capsys.readouterr().out.splitlines()
    assert cut.split()[1:5] == ["sealed", "4", "KiB", "1024..4096"]
    assert whole.split()[1:5] == ["interrupted", "4", "KiB", "4096"]


def test_ls_json_is_a_flow_a_line(image: MadeUpImage, capsys: Capture) -> None:
    assert main(["ls", image.path, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["state"] for line in lines] == ["sealed", "interrupted"]
    assert list(lines[0]) == [
        "flow", "name", "peer", "listener", "state", "bytes", "durable_bytes", "started",
        "ended", "checksum", "first_offset", "head_overwritten", "labels", "protocol", "reason",
        "missing", "misdated",
    ]  # fmt: skip
    assert not any(line["misdated"] for line in lines)


@pytest.mark.parametrize("wrong_ns", [60 * 10**9, 10**18, 4 * 10**18])
def test_ls_marks_what_is_dated_as_it_cannot_be(
    image: MadeUpImage, capsys: Capture, wrong_ns: int
) -> None:
    image.flows[1] = replace(image.flows[1], ended_ns=wrong_ns)
    assert main(["ls", image.path, "--json"]) == 0
    shown = [json.loads(line)["misdated"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [False, True]
    assert main(["ls", image.path]) == 0
    captured = capsys.readouterr()
    assert [line.count("Z?") for line in captured.out.splitlines()] == [0, 0, 1]
    assert "1 of 2 flows, marked with ?," in captured.err


def test_name_from_the_network_cannot_steer_the_terminal(
    image: MadeUpImage, capsys: Capture
) -> None:
    image.flows = [_flow(1, name="\x1b]0;owned\x07\nx")]
    assert main(["ls", image.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_damage_that_does_not_matter_is_a_note(image: MadeUpImage, capsys: Capture) -> None:
    image.warnings = ["superblock B at byte 524288 is damaged"]
    assert main(["ls", image.path, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "ingestd: note: superblock B at byte 524288 is damaged\n"
    assert len(captured.out.splitlines()) == 2


# --- cat -------------------------------------------------------------------------


def test_cat_writes_the_bytes_and_nothing_else(
    image: MadeUpImage, capfdbinary: BinaryCapture
) -> None:
    assert main(["cat", image.path, "00000001"]) == 0
    assert capfdbinary.readouterr() == (CONTENT, b"")


def test_cat_takes_a_part(image: MadeUpImage, capfdbinary: BinaryCapture) -> None:
    assert main(["cat", image.path, "00000001", "--offset", "1KiB", "--length", "300"]) == 0
    assert capfdbinary.readouterr().out == CONTENT[1024:1324]


def test_cat_says_that_a_flow_is_not_sealed(image: MadeUpImage, capfdbinary: BinaryCapture) -> None:
    assert main(["cat", image.path, "00000002"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == CONTENT
    assert b"is interrupted: 4 KiB (4096 bytes) of it are there" in err


def test_cat_into_a_file(image: MadeUpImage, tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"x" * 10_000)
    assert main(["cat", image.path, "00000001", "-o", str(target)]) == 0
    assert target.read_bytes() == CONTENT
    assert capfd.readouterr() == ("", "")


def test_cat_never_writes_into_the_store(
    image: MadeUpImage, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "alias").symlink_to(image.path)
    for path in (image.path, str(tmp_path / "alias")):
        assert main(["cat", image.path, "00000001", "-o", path]) == 2
        assert "is the store itself" in capsys.readouterr().err
    assert Path(image.path).read_bytes() == b"the store itself"


@pytest.mark.parametrize("arguments", [["zzz"], ["00000001", "--offset", "1MiB"]])
def test_cat_keeps_the_output_file_when_there_is_nothing_to_write(
    image: MadeUpImage, tmp_path: Path, arguments: list[str], capsys: Capture
) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"precious")
    assert main(["cat", image.path, *arguments, "-o", str(target)]) in (2, 10)
    assert target.read_bytes() == b"precious"
    assert capsys.readouterr().err.startswith("ingestd: error: ")


def test_cat_into_a_full_disk(image: MadeUpImage, capsys: Capture) -> None:
    assert main(["cat", image.path, "00000001", "-o", "/dev/full"]) == 15
    told = capsys.readouterr().err
    assert told == "ingestd: error: /dev/full: cannot be written: No space left on device\n"


def test_cat_into_a_place_that_is_not_there(
    image: MadeUpImage, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["cat", image.path, "00000001", "-o", str(tmp_path / "a" / "b")]) == 2
    assert "cannot be opened: No such file or directory" in capsys.readouterr().err


def test_cat_of_damaged_bytes_gives_the_whole_ones_and_fails(
    image: MadeUpImage, monkeypatch: pytest.MonkeyPatch, capfdbinary: BinaryCapture
) -> None:
    def read_flow(*_: Any) -> Iterator[bytes]:
        yield b"whole"
        raise StoreDamagedError("segment 3 is damaged")

    monkeypatch.setattr("ingestd.store.read.reader.read_flow", read_flow)
    assert main(["cat", image.path, "00000001"]) == 6
    out, err = capfdbinary.readouterr()
    assert out == b"whole"
    assert err == b"ingestd: error: segment 3 is damaged\n"


def test_bar_is_drawn_for_large_flows_into_files(
    image: MadeUpImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.flows = [_flow(1, bytes=PROGRESS_BYTES_MIN), _flow(2, bytes=PROGRESS_BYTES_MIN - 1)]
    leader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for prefix, target in (("00000001", "a"), ("00000002", "b")):
            assert main(["cat", image.path, prefix, "-o", str(tmp_path / target)]) == 0
        assert main(["cat", image.path, "00000001", "-o", "/dev/null"]) == 0
    drawn = _read_to_the_end(leader)
    assert drawn.count("00000001-0000") > 0
    assert drawn.count("\n") == 1, "one bar: not for the small flow, nor for what is no file"


# --- info ------------------------------------------------------------------------


def test_info(image: MadeUpImage, capsys: Capture) -> None:
    assert main(["info", image.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = dict(line.strip().split("  ", 1) for line in lines[1:])
    told = {key: value.strip() for key, value in told.items()}
    assert told["UUID"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert told["label"] == "detector \\x1b[2J"
    assert told["size"] == "64 MiB (67108864 bytes)"
    assert told["segments"] == "7 of 8 MiB (8388608 bytes)"
    assert told["in use"] == "5 free, 1 open, 1 closed, 0 damaged segments"
    assert told["free"] == "40 MiB (41943040 bytes)"
    assert told["flows"] == "0 open, 1 sealed, 1 interrupted, 0 damaged"
    assert "removed" not in told
    assert told["damaged"] == "segments 7"
    assert "aligned to 4, writes to 512 bytes, boundary 4096" in told["direct I/O"]


def test_info_tells_what_is_remembered_for_damaged_segments(
    image: MadeUpImage, capsys: Capture
) -> None:
    image.removed_count = 3
    image.segments = [SegmentImage(index, SegmentState.DAMAGED) for index in range(12)]
    assert main(["info", image.path]) == 0
    assert (
        "segments 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more; 3 removed flows of which nothing else is"
        " left are remembered"
    ) in capsys.readouterr().out


def test_info_json(image: MadeUpImage, capsys: Capture) -> None:
    image.served = True
    image.removed = image.flows[:1]
    assert main(["info", image.path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert told["created"] == "2023-11-14T22:13:20.000000Z"
    assert told["served"] is True
    assert (told["removed"]["flows"], told["removed"]["bytes"]) == (1, image.flows[0].bytes)
    assert (told["removed"]["remembered"], told["removed"]["remembered_max"]) == (0, 14848)
    assert told["damaged"] == [7]
    assert told["payload_bytes"] == 5000
    assert told["direct_io"] == {
        "mem_align": 4,
        "write_align": 512,
        "virt_mask": 4095,
        "iovecs_max": 1024,
    }


# --- verify ----------------------------------------------------------------------


def _report(*findings: Discrepancy) -> VerifyReport:
    return VerifyReport(
        "/dev/sdx", "uuid", False, {"free": 1}, 2, 30, 4000, 0, findings=list(findings)
    )


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([Discrepancy(DOUBT, "segment 1", "batch 3 is torn")], 0),
        (
            [
                Discrepancy(DOUBT, "segment 1", "batch 3 is torn"),
                Discrepancy(DAMAGE, "segment 2", "batch 0: bytes do not match"),
            ],
            6,
        ),
    ],
)
def test_verify(
    findings: list[Discrepancy],
    code: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(
        "ingestd.store.read.verify.verify_store", lambda path, progress: _report(*findings)
    )
    assert main(["verify", "/dev/sdx", *(["--json"] if as_json else [])]) == code
    captured = capsys.readouterr()
    if as_json:
        told = json.loads(captured.out)
        assert told["findings"] == [finding.as_dict() for finding in findings]
    else:
        lines = captured.out.splitlines()
        assert lines[: len(findings)] == [str(finding) for finding in findings]
        assert lines[len(findings)] == f"/dev/sdx: {'damaged' if code else 'intact'}"
        assert "not checked" not in captured.out
    if code:
        assert "/dev/sdx: 1 of 2 findings shown are damage" in captured.err
    else:
        assert captured.err == ""


def _read_to_the_end(leader: int) -> str:
    """All that was written to a terminal whose other end is closed: it comes piece by piece."""
    pieces = []
    with os.fdopen(leader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while piece := terminal.read(65536):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_verify_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def verify_store(_path: str, progress: Any) -> VerifyReport:
        for done_bytes in (0, 1 << 30, 4 << 30):
            progress(done_bytes, 4 << 30)
        return _report()

    monkeypatch.setattr("ingestd.store.read.verify.verify_store", verify_store)
    assert main(["verify", "/dev/sdx"]) == 0
    assert capsys.readouterr().err == ""
    leader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["verify", "/dev/sdx"]) == 0
    drawn = _read_to_the_end(leader)
    assert "4.00G/4.00G" in drawn
