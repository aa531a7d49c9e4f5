# SPDX-License-Identifier: Apache-2.0
"""The rules of admission: why a hello, a resumption or a trailer is refused.

Invariants: a rule looks at what it is given and at nothing else, so that the answer is the same
whenever it is asked for; the codes are those of docs/protocol.md. Pure; any thread may call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ingestd.daemon.admission.flow_index import Known
from ingestd.daemon.admission.hello import Refusal
from ingestd.daemon.admission.listener_policy import ListenerPolicy
from ingestd.protocol.blocks import Hello, Trailer
from ingestd.store.read.flows import checksum_text

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest

LINE_TEXT_CHARS_MAX: Final = 400


def refusal_of_hello(hello: Hello, policy: ListenerPolicy) -> Refusal | None:
    """Return why a hello can never be admitted here; None: it can."""
    if hello.resume is True and hello.flow is None:
        return Refusal("bad_hello", "resume needs the id of a flow")
    stated = hello.bytes
    if stated is not None and 0 < policy.flow_bytes_max < stated:
        return Refusal("limit", f"a flow here has {policy.flow_bytes_max} bytes at most")
    return None


def refusal_of_resume(hello: Hello, known: Known, policy: ListenerPolicy) -> Refusal | None:
    """Return why a flow that exists cannot be resumed by a hello; None: it can."""
    stated = hello.bytes
    if hello.resume is False:
        return Refusal("exists", "a flow of this id is in the store")
    if not known.is_resumable:
        return Refusal("unknown_flow", "no flow of this protocol has this id")
    if known.is_sealed:
        return Refusal("sealed", "the flow is complete and durable")
    if not known.is_settled:
        return Refusal("busy", "what of the flow is durable is not known before a restart")
    if stated is not None and known.bytes_count > stated:
        return Refusal("too_long", "more bytes of the flow are stored than were stated")
    if 0 < policy.flow_bytes_max < known.bytes_count:
        return Refusal("limit", f"a flow here has {policy.flow_bytes_max} bytes at most")
    return None


def refusal_of_trailer(trailer: Trailer, request: AdmissionRequest) -> Refusal | None:
    """Return why a flow is not sealed: its trailer states other bytes than came; None: it is."""
    if trailer.bytes not in (None, request.bytes_count):
        text = f"the trailer states {trailer.bytes} bytes, and {request.bytes_count} came"
        return Refusal("trailer", text)
    if trailer.crc32c is not None and request.is_crc_known and trailer.crc32c != request.crc:
        theirs, ours = checksum_text(trailer.crc32c), checksum_text(request.crc)
        return Refusal("checksum", f"the trailer says {theirs}, what came has {ours}")
    return None


def error_line(
    refusal: Refusal, flow: str | None, durable_bytes: int, more: Mapping[str, Any]
) -> bytes:
    """Return the `error` line of docs/protocol.md; `more`: the fields of some codes."""
    line = {
        "type": "error",
        "code": refusal.code,
        "text": refusal.text[:LINE_TEXT_CHARS_MAX],
        "flow": flow,
        "durable": durable_bytes,
        **more,
    }
    return json.dumps(line).encode() + b"\n"
