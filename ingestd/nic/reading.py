# SPDX-License-Identifier: Apache-2.0
"""Reading the whole state of an interface.

Invariants: nothing is changed; each part comes from netlink where netlink has
it, else from ethtool or sysfs. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ingestd.errors import EngineError
from ingestd.nic import netlink
from ingestd.nic.ethtool import Ethtool, Runner, run_ethtool
from ingestd.nic.state import NicState, Queue
from ingestd.nic.timestamps import read_rx_filter

SYSFS_NET: Final = Path("/sys/class/net")
QUEUES_COUNT_MAX: Final = 4096
_CONTEXT_OWN: Final = 0


def read_nic(
    interface: str,
    *,
    with_irqs: bool = False,
    run: Runner = run_ethtool,
    sysfs: Path = SYSFS_NET,
) -> NicState:
    """Return what an interface is like. Raises EngineError if there is none of that name.

    with_irqs: also read the queues' interrupts. Only who shows them to people
    asks: some kernels warn when a driver's NAPI instances are listed that got
    new numbers.
    """
    link = netlink.read_link(interface)
    ethtool = Ethtool(interface, run)
    spread = netlink.read_spread(interface)
    count = netlink.read_queue_count(interface)
    device = sysfs / interface / "device"
    irqs = netlink.read_irqs(interface, link.index) if with_irqs else {}
    return NicState(
        interface=interface,
        index=link.index,
        mtu=link.mtu,
        is_up=link.is_up,
        has_xdp=link.has_xdp,
        driver=_driver(device) or ethtool.driver(),
        numa_node=_numa_node(device),
        local_cpus=_text(device / "local_cpulist"),
        rings=netlink.read_rings(interface),
        queues=tuple(
            replace(queue, irq=irqs.get(queue.napi_id or 0))
            for queue in _queues(netlink.read_queues(interface, link.index), count)
        ),
        features=ethtool.features(),
        spread=spread.get(_CONTEXT_OWN),
        contexts={number: table for number, table in spread.items() if number != _CONTEXT_OWN},
        rules=ethtool.rules(),
        private_flags=ethtool.private_flags(),
        rx_filter=read_rx_filter(interface),
        has_htb_offload=netlink.read_htb_offload(interface, link.index),
    )


def napi_ids(interface: str, queues: Sequence[int]) -> list[int | None]:
    """Return the NAPI id of each of the rx queues; None: the kernel does not say.

    netdev-genl's queue-get; a queue that is set up anew may get another id, so
    this is to be asked after zero-copy receive is registered.
    """
    link = netlink.read_link(interface)
    known = {queue.index: queue.napi_id for queue in netlink.read_queues(interface, link.index)}
    return [known.get(queue) for queue in queues]


def _queues(found: Sequence[Queue], count: int | None) -> tuple[Queue, ...]:
    """Those that the kernel lists; of a link that is down, which it does not, only the numbers."""
    if count is not None and count > QUEUES_COUNT_MAX:
        raise EngineError(f"{count} rx queues are more than are believed to exist")
    by_index = {queue.index: queue for queue in found}
    total = max(count or 0, max(by_index, default=-1) + 1)
    return tuple(by_index.get(index, Queue(index)) for index in range(total))


def _driver(device: Path) -> str | None:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def _numa_node(device: Path) -> int | None:
    """-1 in sysfs stands for a machine without nodes."""
    text = _text(device / "numa_node")
    return int(text) if text is not None and text.isdigit() else None
