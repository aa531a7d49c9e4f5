# SPDX-License-Identifier: Apache-2.0
"""Messages between sender and daemon; docs/protocol.md in code. Pure.

`raw`: one line comes back (receipt). `ingest`: blocks go up (blocks), lines
come down (lines); fields is shared by them.
"""

from ingestd.protocol.blocks import BLOCK_BYTES, Hello, Trailer
from ingestd.protocol.fields import BYTES_COUNT_MAX, LINE_BYTES_MAX
from ingestd.protocol.receipt import (
    ErrorCode,
    Receipt,
    ReceiptState,
    format_receipt,
    parse_receipt,
)

__all__ = [
    "BLOCK_BYTES",
    "BYTES_COUNT_MAX",
    "LINE_BYTES_MAX",
    "ErrorCode",
    "Hello",
    "Receipt",
    "ReceiptState",
    "Trailer",
    "format_receipt",
    "parse_receipt",
]
