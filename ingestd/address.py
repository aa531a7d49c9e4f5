# SPDX-License-Identifier: Apache-2.0
"""Addresses of listeners and receivers: HOST:PORT, [V6]:PORT, *:PORT.

Invariants: a host is never empty, and "*" stands for all addresses of both
families; an IP address is in its canonical form. No state, no name is looked
up here; any thread may call.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

ANY_HOST: Final = "*"
PORT_MAX: Final = 65535
ADDRESS_CHARS_MAX: Final = 300

_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII
)


class Address(NamedTuple):
    """A host (name, IP address without brackets, or "*") and a port, 0: the kernel chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that a text means.

    Raises ValueError with half a sentence that goes behind "NAME: ".
    """
    host, colon, port_text = text.rpartition(":")
    if len(text) > ADDRESS_CHARS_MAX or not colon or not host:
        shown = text[:ADDRESS_CHARS_MAX]
        raise ValueError(f"{shown!r} is not an address: write HOST:PORT, [V6]:PORT or *:PORT")
    if _PORT.fullmatch(port_text) is None or int(port_text) > PORT_MAX:
        raise ValueError(f"{text!r} has no port between 0 and {PORT_MAX} behind its last colon")
    return Address(_parse_host(host, text), int(port_text))


def _parse_host(host: str, text: str) -> str:
    if host == ANY_HOST:
        return host
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    try:
        ip = ipaddress.ip_address(inner)
    except ValueError:
        if bracketed or _HOST_NAME.fullmatch(host) is None:
            message = f"{text!r} has a host that is neither a name nor an IP address"
            raise ValueError(message) from None
        return host
    if (ip.version == 6) != bracketed:
        raise ValueError(f"{text!r}: an IPv6 address, and only such, stands in brackets")
    return str(ip)


def same_listening_address(one: Address, other: Address) -> bool:
    """Return whether two listeners could not both bind; a host name only equals itself."""
    if one.port != other.port or one.port == 0:
        return False
    if one.host == other.host or ANY_HOST in (one.host, other.host):
        return True
    try:
        ip, other_ip = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    except ValueError:
        return False
    return ip.version == other_ip.version and (ip.is_unspecified or other_ip.is_unspecified)
