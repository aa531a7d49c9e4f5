# SPDX-License-Identifier: Apache-2.0
"""`ingestd inspect`: print what lies at one place of a store.

Invariants: nothing is written; what is damaged is printed all the same, and decides the
exit code behind it. Owned by the main thread.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ingestd.cli.output import note, print_json, print_pairs, print_table, safe
from ingestd.errors import IngestdError, StoreDamagedError, UsageError

if TYPE_CHECKING:
    from ingestd.store.format.records import Event
    from ingestd.store.format.segment import SegmentImage
    from ingestd.store.read.inspection import BatchReport, Inspector, SegmentReport
    from ingestd.store.read.verdict import Struct

_USAGE: Final = "superblock, segment N, or batch N.M (batch M of segment N)"
_HEX_SHOWN_MAX: Final = 64
_DIGITS: Final = r"(?:0|[1-9][0-9]{0,9})"
_SEGMENT_COLUMNS: Final = ("SEGMENT", "STATE", "SEQUENCE", "WORKER", "BATCHES", "PAYLOAD", "END")
_BATCH_COLUMNS: Final = ("BATCH", "BYTE", "BYTES", "RECORDS", "PAYLOAD", "COUNTS")
_SPAN_COLUMNS: Final = ("FLOW", "FIRST", "END", "BLOCKS", "CRC BEFORE", "CRC AFTER", "HAS")
_RIGHT: Final = frozenset(
    {"SEGMENT", "BATCHES", "PAYLOAD", "END", "BATCH", "BYTE", "BYTES", "RECORDS", "FIRST"}
)


def run_inspect(arguments: Namespace) -> int:
    """Print one place of a store; raise StoreDamagedError behind it if it is damaged."""
    from ingestd.store.device.opening import open_device
    from ingestd.store.read.inspection import Inspector

    kind, numbers = parse_place(arguments.place)
    with open_device(arguments.store) as device:
        if kind == "superblock":
            is_damaged = _show_superblocks(device, arguments.json)
        else:
            inspector = Inspector(device)
            for text in inspector.warnings:
                note(text)
            if kind == "segment":
                is_damaged = _show_segment(inspector.segment(*numbers), arguments.json)
            elif kind == "batch":
                is_damaged = _show_batch(inspector.batch(*numbers), arguments.json)
            else:
                is_damaged = _show_store(inspector, arguments.json)
    if is_damaged:
        what = " ".join(arguments.place) or "a part of the store"
        raise StoreDamagedError(
            f"{arguments.store}: {what} is damaged, as shown: ingestd verify"
            f" {arguments.store} checks all of it"
        )
    return 0


def parse_place(words: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Return which kind of place is meant, and its numbers. Raises UsageError."""
    text = " ".join(words)
    if text in ("", "superblock"):
        return text, ()
    if found := re.fullmatch(rf"segment ({_DIGITS})", text):
        return "segment", (int(found[1]),)
    if found := re.fullmatch(rf"batch ({_DIGITS})\.({_DIGITS})", text):
        return "batch", (int(found[1]), int(found[2]))
    raise UsageError(f"{text!r:.60} is no place of a store: write {_USAGE}")


def _show_superblocks(device: Any, as_json: bool) -> bool:
    """Print both copies, then raise what read_superblock() says of them together."""
    from ingestd.store.metadata.superblock import read_superblock
    from ingestd.store.read.inspection import superblocks

    copies = superblocks(device)
    error: IngestdError | None = None
    try:
        read_superblock(device)
    except IngestdError as found:
        error = found
    if as_json:
        print_json({"path": device.path, "superblocks": [copy.as_dict() for copy in copies]})
    else:
        for name, copy in zip("AB", copies, strict=True):
            _print_struct(copy, f"superblock {name}")
    if error is not None:
        raise error
    return any(copy.is_damaged or not copy.fields for copy in copies)


def _show_store(inspector: Inspector, as_json: bool) -> bool:
    """Print the fixed places, shortly, and a line for each segment that is not free."""
    from ingestd.store.metadata.tombstones import read_removals
    from ingestd.store.read.inspection import superblocks

    copies = superblocks(inspector.device)
    places = inspector.fixed_places()
    removals = read_removals(inspector.device, inspector.superblock)
    segments = list(inspector.segments())
    if as_json:
        print_json(
            {
                "path": inspector.device.path,
                "served": inspector.served,
                "superblocks": [copy.as_dict() for copy in copies],
                "places": [place.as_dict() for place in places],
                "removed": {"flows": len(removals.flows), "damaged": list(removals.damaged)},
                "segments": [_image_object(image) for image in segments],
            }
        )
    else:
        print_pairs(
            [
                *(
                    (f"superblock {name}", _place_text(copy))
                    for name, copy in zip("AB", copies, strict=True)
                ),
                *((place.name.replace("_", " "), _place_text(place)) for place in places),
                ("removed flows", f"{len(removals.flows)}, damaged: {list(removals.damaged)}"),
                ("segments", f"{inspector.superblock.segment_count}, those in use:"),
            ]
        )
        rows = [_image_row(image) for image in segments]
        print_table(_SEGMENT_COLUMNS, rows, _RIGHT)
    _report_progress(segments)
    return (
        any(copy.is_damaged for copy in copies)
        or bool(removals.damaged)
        or any(image.state == "damaged" for image in segments)
    )


def _report_progress(segments: Iterable[SegmentImage]) -> None:
    for image in segments:
        for text in image.warnings:
            note(text)


def _place_text(place: Struct) -> str:
    text = f": {place.text}" if place.text else ""
    return f"byte {place.offset}, {place.verdict}{text}"


def _image_object(image: SegmentImage) -> dict[str, Any]:
    return {
        "index": image.index,
        "state": str(image.state),
        "sequence": image.sequence,
        "worker": image.worker_index,
        "batches": image.batch_count,
        "batches_dropped": image.batches_dropped,
        "batches_missing": image.batches_missing,
        "batches_end": image.batches_end,
        "committed_end": image.committed_end,
        "payload_bytes": image.payload_bytes,
        "warnings": image.warnings,
    }


def _image_row(image: SegmentImage) -> tuple[str, ...]:
    from ingestd.store.read.verdict import sequence_text

    return (
        str(image.index),
        str(image.state),
        sequence_text(image.sequence),
        str(image.worker_index),
        str(image.batch_count),
        str(image.payload_bytes),
        str(image.batches_end),
    )


def _show_segment(report: SegmentReport, as_json: bool) -> bool:
    image = report.image
    blocks = [report.header, *report.marks, report.footer]
    if as_json:
        print_json(
            {
                "segment": _image_object(image),
                "freed": report.is_freed,
                "blocks": [block.as_dict() for block in blocks],
                "batches": [
                    {
                        "index": line.index,
                        "offset": line.offset,
                        "batch_bytes": line.batch_bytes,
                        "records": line.record_count,
                        "payload_bytes": line.payload_bytes,
                        "counts": line.status,
                        "part": line.is_part,
                    }
                    for line in report.batches
                ],
                "events": [event_object(event) for event in image.events],
                "spans": [_row_object(span.row()) for span in image.spans],
            }
        )
    else:
        _print_segment(report, blocks)
    for text in image.warnings:
        note(text)
    return report.is_damaged


def _print_segment(report: SegmentReport, blocks: Sequence[Struct]) -> None:
    image = report.image
    print(f"segment {image.index}: {image.state}{', reclaimed' if report.is_freed else ''}")
    for name, block in zip(("header", "mark 0", "mark 1", "footer"), blocks, strict=True):
        _print_struct(block, name)
    if report.batches:
        print_table(
            _BATCH_COLUMNS,
            [
                (
                    str(line.index),
                    str(line.offset),
                    str(line.batch_bytes),
                    str(line.record_count),
                    str(line.payload_bytes),
                    f"{line.status}, part of the footer" if line.is_part else line.status,
                )
                for line in report.batches
            ],
            _RIGHT,
        )
    for event in image.events:
        _print_record(event_object(event))
    if image.spans:
        print_table(_SPAN_COLUMNS, [_span_row(span.row()) for span in image.spans], _RIGHT)


def _span_row(row: Any) -> tuple[str, ...]:
    from ingestd.store.format.layout import SPAN_HAS_CLOSE, SPAN_HAS_OPEN

    fields = _row_object(row)
    has = [
        name
        for name, flag in (("OPEN", SPAN_HAS_OPEN), ("CLOSE", SPAN_HAS_CLOSE))
        if row.flags & flag
    ]
    return (
        fields["flow"],
        str(row.first_offset),
        str(row.end_offset),
        f"{row.first_batch_block}-{row.last_batch_block}",
        fields["crc_before"],
        fields["crc_after"],
        ",".join(has) or "-",
    )


def _show_batch(report: BatchReport, as_json: bool) -> bool:
    extents, events = _records(report)
    if as_json:
        print_json(
            {
                "header": report.header.as_dict(),
                "counts": report.status,
                "expected": report.is_expected,
                "part": report.part and report.part.as_dict(),
                "extents": extents,
                "events": events,
            }
        )
    else:
        _print_struct(report.header, "batch header")
        print_pairs([("counts", report.status)])
        if report.part is not None:
            _print_struct(report.part, "part of the footer")
        for record in (*extents, *events):
            _print_record(record)
    return report.is_damaged


def _records(report: BatchReport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from ingestd.store.read.verdict import shown

    if report.batch is None:
        return [], []
    records = report.batch.records
    extents = [
        {
            **_row_object(row),
            "device_offset": found.offset,
            "computed_crc": None if found.crc32c is None else shown("crc", found.crc32c),
            "whole": found.is_whole,
        }
        for row, found in zip(records.extents, report.extents, strict=True)
    ]
    return extents, [event_object(event) for event in records.events]


def event_object(event: Event) -> dict[str, Any]:
    """Return an OPEN or CLOSE record for JSON, its numbers in words beside them."""
    from ingestd.store.format.layout import FLOW_STATES, PROTOCOLS, REASONS
    from ingestd.store.format.records import OpenEvent

    fields = _row_object(event.row)
    if isinstance(event, OpenEvent):
        fields["listener"], fields["name"], fields["labels"] = event.texts()
        fields["peer"] = event.peer()
        fields["protocol_name"] = PROTOCOLS.get(event.row.protocol)
    else:
        fields["state_name"] = FLOW_STATES.get(event.row.state)
        fields["reason_name"] = REASONS.get(event.row.reason)
    return fields


def _row_object(row: Any) -> dict[str, Any]:
    from ingestd.store.format.layout import RECORD_KINDS
    from ingestd.store.read.verdict import shown

    fields = {name: shown(name, value) for name, value in row._asdict().items()}
    fields["kind_name"] = RECORD_KINDS.get(row.kind)
    return fields


def _print_struct(found: Struct, name: str) -> None:
    print(f"{name} at byte {found.offset}: {found.verdict}{found.text and ': '}{safe(found.text)}")
    print_pairs(
        [(key, _field_text(key, value)) for key, value in found.as_dict()["fields"].items()]
    )


def _print_record(record: dict[str, Any]) -> None:
    print(f"{record['kind_name']} {record['flow']}")
    left = {k: v for k, v in record.items() if k not in ("kind", "kind_name", "flow")}
    print_pairs([(key, _field_text(key, value)) for key, value in left.items()])


def _field_text(name: str, value: Any) -> str | None:
    """A field's value for people: times and sequences in words beside the number."""
    from ingestd.store.read.flows import utc_text
    from ingestd.store.read.verdict import sequence_text

    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return None
    if name.endswith("_ns") and value:
        return f"{value} ({utc_text(value)})"
    if name == "segment_sequence":
        return f"{value} ({sequence_text(value)})"
    if isinstance(value, str) and len(value) > _HEX_SHOWN_MAX and not value.strip("0"):
        return "zeros"
    if isinstance(value, str) and len(value) > _HEX_SHOWN_MAX:
        return f"{value[:_HEX_SHOWN_MAX]}... ({len(value)} characters)"
    return str(value)
