# SPDX-License-Identifier: Apache-2.0
"""Finding the daemon that serves a store, by what it wrote into the store itself.

Invariants: a path leads to nothing by its name. The store's holder record names the socket; the
record counts only where it was written, as copies of a store have it too, and the daemon behind
the socket must serve a store that it opened with the record's token, which no other opening has.
Any thread may call.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ingestd.control.client import ControlClient
from ingestd.errors import ControlError
from ingestd.store.device.holder import read_holder
from ingestd.store.device.opening import open_device

CONNECT_TIMEOUT_S: Final = 10.0


class Serving(NamedTuple):
    """A daemon that serves a store, under a name of its own; `client` is to be closed.

    `has_catalogue`: it lists flows without reading all of the store, and keeping all in memory.
    """

    client: ControlClient
    store: str
    has_catalogue: bool


def find_serving(
    path: str, *, timeout_s: float = CONNECT_TIMEOUT_S, problems: list[str] | None = None
) -> Serving | None:
    """Return the daemon that serves the store at a path, if it can be asked; else None.

    `problems` gets the reason why one that wrote into the store cannot be asked. Raises
    what open_device() and read_holder() do.
    """
    with open_device(path) as device:
        holder = read_holder(device)
        if holder is None or not holder.control or not holder.is_at(device.layers):
            return None
    try:
        client = ControlClient(holder.control, timeout_s=timeout_s)
    except ControlError as error:
        if problems is not None:
            problems.append(str(error))
        return None
    try:
        for store in client.status()["stores"]:
            if store["token"] == holder.token.hex():
                return Serving(client, str(store["name"]), store["catalogue"] is True)
    except (ControlError, KeyError, TypeError):
        pass
    except BaseException:
        client.close()
        raise
    client.close()
    return None
