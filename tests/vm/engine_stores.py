# SPDX-License-Identifier: Apache-2.0
"""What lies in the stores that the machine has written, compared with what its senders sent.

The senders noted every flow in a manifest, a line each: STORE ID SEED BYTES STATE PORT. STATE is
`sealed` (the right receipt has come), `reset` (the sender's doing) or `lost` (no receipt); ID is
`-` where none was received. Bytes follow from the seed, made here as in guest/content.c.

Invariants: this reads disks' files with ingestd's own reader and knows nothing of the machine; a
sealed flow must be there to the last byte, any other may be there as far as it was sent, and
nothing else may be there at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ingestd.store.read.flows import STATE_SEALED, Flow
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store

STATE_RESET = "reset"
RING_BYTES = (1 << 20) + 13
RING_STATE = 88172645463325252
SEED_STEP = 7919
WORD = (1 << 64) - 1
DIGESTS_KEPT = 8192


@dataclass(frozen=True)
class Sent:
    """A line of the manifest. `flow` is None where the sender received no id."""

    store: str
    flow: str | None
    seed: int
    bytes: int
    state: str
    port: int

    @classmethod
    def parse(cls, line: str) -> "Sent":
        """Read a line of the manifest; ValueError if it is none."""
        store, flow, seed, size, state, port = line.split()
        return cls(store, None if flow == "-" else flow, int(seed), int(size), state, int(port))


def make_ring() -> bytes:
    """Return the ring of random bytes that every flow walks round."""
    words, state = [], RING_STATE
    for _ in range(0, RING_BYTES, 8):
        state ^= state << 13 & WORD
        state ^= state >> 7
        state ^= state << 17 & WORD
        words.append(state.to_bytes(8, "little"))
    return b"".join(words)[:RING_BYTES]


def content(ring: bytes, seed: int, size: int) -> Iterator[bytes]:
    """Return the first `size` bytes of the flow of a seed, in pieces."""
    at = seed % RING_BYTES * SEED_STEP % RING_BYTES
    while size > 0:
        piece = ring[at : at + size]
        yield piece
        size -= len(piece)
        at = 0


def sha256(pieces: Iterator[bytes]) -> str:
    """Return the digest of all pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=DIGESTS_KEPT)
def _digest_of(ring: bytes, seed: int, size: int) -> str:
    """The digest of what was sent; many states of one store ask for the same."""
    return sha256(content(ring, seed, size))


def _port_of(flow: Flow) -> int:
    return int((flow.peer or ":0").rpartition(":")[2])


def _differs(image: StoreImage, flow: Flow, sent: Sent, ring: bytes) -> str | None:
    """Say how a flow differs from what was sent of it; None if it does not."""
    if sent.state == STATE_SEALED and (flow.state, flow.bytes) != (STATE_SEALED, sent.bytes):
        return f"is {flow.state} with {flow.bytes} bytes, its receipt says {sent.bytes}"
    if sent.state == STATE_RESET and flow.state == STATE_SEALED:
        return "is sealed, though its sender reset the connection"
    if flow.bytes > sent.bytes:
        return f"has {flow.bytes} bytes, {sent.bytes} were sent"
    if sha256(read_flow(image, flow)) != _digest_of(ring, sent.seed, flow.bytes):
        return f"has other bytes than the flow of seed {sent.seed}"
    return None


def _check_flow(image: StoreImage, flow: Flow, sent: Sequence[Sent], ring: bytes) -> str | None:
    """Compare a flow with the lines that may be its own: its id's, else those of its port.

    A crash may have taken the record of its beginning, and with it who sent it.
    """
    own = [line for line in sent if line.flow == flow.flow]
    own = own or [
        line
        for line in sent
        if line.flow is None and (flow.peer is None or line.port == _port_of(flow))
    ]
    if not own:
        return "was never sent"
    faults = [_differs(image, flow, line, ring) for line in own]
    return None if None in faults else "; ".join(filter(None, faults))


def check_image(image: StoreImage, sent: Sequence[Sent], ring: bytes) -> dict[str, str]:
    """Return a sentence for every flow that is not as it should be, by the flow's id."""
    faults = {}
    for flow in image.flows:
        fault = _check_flow(image, flow, sent, ring)
        if fault:
            faults[flow.flow] = f"flow {flow.flow} {fault}"
    found = {flow.flow for flow in image.flows}
    for line in sent:
        if line.flow and line.state == STATE_SEALED and line.flow not in found:
            text = f"flow {line.flow} of seed {line.seed} is missing, though it has its receipt"
            faults[line.flow] = text
    return faults


def check_store(path: Path, sent: Sequence[Sent], ring: bytes) -> list[str]:
    """Return a sentence for everything in a store that is not as it should be."""
    faults = [str(finding) for finding in verify_store(str(path)).findings]
    with read_image(str(path)) as image:
        return faults + list(check_image(image, sent, ring).values())


def check_stores(files: Mapping[str, Path], manifest: Path) -> tuple[int, int]:
    """Check the store in each file and print a line for each; return how many are right and wrong.

    `files` are by the store's name in the manifest. A store that nobody sent to is wrong too.
    """
    lines = manifest.read_text(encoding="ascii").splitlines() if manifest.exists() else []
    sent = [Sent.parse(line) for line in lines]
    ring, wrong = make_ring(), 0
    for name, path in files.items():
        own = [line for line in sent if line.store == name]
        faults = check_store(path, own, ring) if own else ["nothing was sent to it"]
        wrong += bool(faults)
        for fault in faults:
            print(f"    {fault}")
        sealed = [line for line in own if line.state == STATE_SEALED]
        total = sum(line.bytes for line in sealed)
        print(
            f"{'FAIL' if faults else 'ok  '} store {name}, read on the host: {len(sealed)} sealed"
            f" flows of {total} bytes, {len(own) - len(sealed)} others"
        )
    print(f"engine-stores: {len(files) - wrong} passed, {wrong} failed")
    return len(files) - wrong, wrong
