# SPDX-License-Identifier: Apache-2.0
"""Time stamps by hardware: for which received packets an interface makes them.

Invariants: only reads; what kernel or driver do not support is None. Any thread.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from typing import Final

# include/uapi/linux/sockios.h and net_tstamp.h; struct ifreq of netdevice(7) has a name of 16
# bytes and a union of 24, of which the pointer takes the first 8.
SIOCGHWTSTAMP: Final = 0x89B1
FILTER_NONE: Final = 0
_IFREQ: Final = struct.Struct("16sQ16x")
_RX_FILTER_INDEX: Final = 2  # struct hwtstamp_config: flags, tx_type, rx_filter


def read_rx_filter(interface: str) -> int | None:
    """Return the rx filter (HWTSTAMP_FILTER_*), or None where it cannot be asked for."""
    config = array.array("i", [0, 0, 0])
    address, _ = config.buffer_info()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCGHWTSTAMP, _IFREQ.pack(interface.encode(), address))
    except OSError:
        return None
    return config[_RX_FILTER_INDEX]
