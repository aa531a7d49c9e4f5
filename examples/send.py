#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Send a file to a listener of protocol `ingest`, and resume after a lost connection.

    python3 send.py HOST PORT FILE [FLOW]

Plain Python, nothing of ingestd: docs/protocol.md in its shortest form. FLOW is the
id that an earlier run printed; with it, the file is resumed where that run ended.
Where the listener asks for a key, INGEST_KEY is NAME:SECRET, in hexadecimal digits.
"""

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import socket
import sys
import time
import uuid

BLOCK_BYTES = 4096
# It can be tried again.
PASSING = ("busy", "shutdown", "idle_timeout", "hello_timeout", "interrupted")
ZEROS = b"0" * 64  # in the place of the MAC, while it is computed


def hello_block(flow: str, path: pathlib.Path, greeting: dict) -> bytes:
    fields = {"flow": flow, "resume": "auto", "name": path.name, "bytes": path.stat().st_size}
    key, _, secret = os.environ.get("INGEST_KEY", "").partition(":")
    if key:
        fields |= {"key": key, "mac": ZEROS.decode()}
    text = json.dumps(fields).encode()
    if key:
        said = bytes.fromhex(greeting["challenge"]) + hashlib.sha256(text).digest()
        mac = hmac.new(bytes.fromhex(secret), said, hashlib.sha256).hexdigest()
        text = mac.encode().join(text.rsplit(ZEROS, 1))
    return (b"ingest/1\n" + text + b"\n").ljust(BLOCK_BYTES, b"\0")


def await_line(lines, *types: str) -> dict:
    """Return the next line of one of these types; others may be ignored."""
    while text := lines.readline(BLOCK_BYTES):
        line = json.loads(text)
        if line["type"] == "error" and line["code"] in PASSING:
            raise ConnectionError(line["text"])
        if line["type"] == "error" and line["code"] != "sealed":
            sys.exit(f"{line['code']}: {line['text']}; {line['durable']} bytes are durable")
        if line["type"] in (*types, "error"):
            return line
    raise ConnectionError("the connection ended without a receipt")


def send(host: str, port: int, path: pathlib.Path, flow: str) -> dict:
    """Make one attempt; return the receipt."""
    with socket.create_connection((host, port), timeout=600) as sock:
        lines = sock.makefile("rb")
        greeting = await_line(lines, "hello")
        if 1 not in greeting["versions"] or greeting["auth"] not in ("none", "hmac-sha256"):
            sys.exit("this example speaks version 1, and authenticates by hmac-sha256 only")
        sock.sendall(hello_block(flow, path, greeting))
        answer = await_line(lines, "accepted")
        if answer["type"] == "error":  # sealed: an earlier attempt did it all
            return answer
        with path.open("rb") as file, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendfile(file, answer["offset"])
            sock.shutdown(socket.SHUT_WR)
        return await_line(lines, "sealed")  # or why the daemon took no more


def main(host: str, port: str, file: str, flow: str) -> None:
    path = pathlib.Path(file)
    print(f"flow {flow}", flush=True)
    for attempt in range(10):
        try:
            receipt = send(host, int(port), path, flow)
        except OSError as error:
            print(f"attempt {attempt}: {error}", file=sys.stderr)
            time.sleep(min(0.1 * 2**attempt, 10))
            continue
        if receipt["bytes"] != path.stat().st_size:
            sys.exit(f"the flow has {receipt['bytes']} bytes: that is not this file")
        print(json.dumps(receipt))
        return
    sys.exit(f"gave up: resume later with flow {flow}")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:4], sys.argv[4] if len(sys.argv) == 5 else str(uuid.uuid4()))
