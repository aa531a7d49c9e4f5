# SPDX-License-Identifier: Apache-2.0
"""A receiver as one writes it in Python: asyncio reads, a file takes it, fsync at the end.

One connection, then it ends; when it has, the bytes are on stable media.

    asyncio_receiver.py PORT FILE
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

READ_BYTES: Final = 1 << 20


async def serve(port: int, path: Path) -> None:
    """Write what the first connection brings to a new file."""
    done = asyncio.Event()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with path.open("wb") as file:
            while data := await reader.read(READ_BYTES):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        done.set()

    server = await asyncio.start_server(receive, "127.0.0.1", port, limit=READ_BYTES)
    async with server:
        await done.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
