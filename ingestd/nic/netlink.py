# SPDX-License-Identifier: Apache-2.0
"""Interfaces by netlink: what pyroute2 knows, and the few messages it does not.

Invariants: each call opens a socket and closes it; what a driver does not
support is None, not an error. Numbers and layouts are those of the kernel's
include/uapi/linux/{ethtool_netlink_generated,netdev}.h. Importing this module
is slow: only who needs a NIC does. Any thread may call.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.iproute import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.generic.ethtool import (
    ETHTOOL_GENL_NAME,
    ETHTOOL_GENL_VERSION,
    ETHTOOL_MSG_RINGS_GET,
    ETHTOOL_MSG_RINGS_SET,
    ethtool_rings_msg,
    ethtoolheader,
)

from ingestd.errors import EngineError, SystemCallError
from ingestd.nic.state import Holder, Queue, RingName, Rings

ETHTOOL_MSG_CHANNELS_GET: Final = 17
ETHTOOL_MSG_RSS_GET: Final = 38
NETDEV_GENL_NAME: Final = "netdev"
NETDEV_CMD_QUEUE_GET: Final = 10
NETDEV_CMD_NAPI_GET: Final = 11
NETDEV_QUEUE_TYPE_RX: Final = 0
IFF_UP: Final = 1
# Not there, not for this kind of device, not known to this kernel.
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)

_Map = tuple[tuple[str, str], ...]


def _attributes(prefix: str, *names_and_kinds: tuple[str, str]) -> _Map:
    return (f"{prefix}_UNSPEC", "none"), *((f"{prefix}_{n}", kind) for n, kind in names_and_kinds)


class _RingsMessage(ethtool_rings_msg):  # type: ignore[misc]
    """With header split's threshold, which pyroute2 does not know yet."""

    nla_map = (
        *ethtool_rings_msg.nla_map,
        ("ETHTOOL_A_RINGS_HDS_THRESH", "uint32"),
        ("ETHTOOL_A_RINGS_HDS_THRESH_MAX", "uint32"),
    )
    ethtoolheader = ethtoolheader


class _ChannelsMessage(genlmsg):  # type: ignore[misc]
    nla_map = _attributes(
        "CHANNELS",
        ("HEADER", "ethtoolheader"),
        ("RX_MAX", "uint32"),
        ("TX_MAX", "uint32"),
        ("OTHER_MAX", "uint32"),
        ("COMBINED_MAX", "uint32"),
        ("RX_COUNT", "uint32"),
        ("TX_COUNT", "uint32"),
        ("OTHER_COUNT", "uint32"),
        ("COMBINED_COUNT", "uint32"),
    )
    ethtoolheader = ethtoolheader


class _RssMessage(genlmsg):  # type: ignore[misc]
    nla_map = _attributes(
        "RSS",
        ("HEADER", "ethtoolheader"),
        ("CONTEXT", "uint32"),
        ("HFUNC", "uint32"),
        ("INDIR", "array(uint32)"),
    )
    ethtoolheader = ethtoolheader


class _QueueMessage(genlmsg):  # type: ignore[misc]
    nla_map = _attributes(
        "QUEUE",
        ("ID", "uint32"),
        ("IFINDEX", "uint32"),
        ("TYPE", "uint32"),
        ("NAPI_ID", "uint32"),
        ("DMABUF", "uint32"),
        ("IO_URING", "provider"),
        ("XSK", "hex"),
    )

    class provider(nla):  # type: ignore[misc]  # noqa: N801 (nla_map names it)
        nla_map = _attributes("PROVIDER", ("RX_BUF_LEN", "uint32"))


class _NapiMessage(genlmsg):  # type: ignore[misc]
    nla_map = _attributes("NAPI", ("IFINDEX", "uint32"), ("ID", "uint32"), ("IRQ", "uint32"))


@dataclass(frozen=True)
class LinkState:
    """The attributes that every interface has."""

    index: int
    mtu: int
    is_up: bool
    has_xdp: bool


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what netlink raises into errors for people."""
    try:
        yield
    except NetlinkError as error:
        raise EngineError(f"{what} was refused: {_reason(error)}") from None
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise SystemCallError(
                f"{what}: netlink is forbidden here: add AF_NETLINK to RestrictAddressFamilies="
                " of the systemd unit"
            ) from None
        raise SystemCallError(f"{what} failed: {error.strerror or error}") from None


def _reason(error: NetlinkError) -> str:
    """The kernel's own words where it sent some, else the errno's."""
    return str(error.args[1] if len(error.args) > 1 else error)


def _ask(
    family: str, message: type[Any], command: int, attributes: list[tuple[str, Any]], flags: int
) -> list[Any]:
    with GenericNetlinkSocket(ext_ack=True) as sock:
        sock.asyncore.module_err_level = "debug"  # a family that is missing is no alarm
        sock.bind(family, message)
        request = message()
        request["cmd"] = command
        request["version"] = ETHTOOL_GENL_VERSION  # netdev's is 1 as well
        request["attrs"] += attributes
        return list(sock.nlm_request(request, msg_type=sock.prid, msg_flags=NLM_F_REQUEST | flags))


def _ask_if_known(
    family: str, message: type[Any], command: int, attributes: list[tuple[str, Any]], flags: int = 0
) -> list[Any]:
    """The same; nothing where driver or kernel do not have it."""
    try:
        return _ask(family, message, command, attributes, flags)
    except NetlinkError as error:
        if error.code in _UNSUPPORTED:
            return []
        raise


def _header(name: str, interface: str) -> tuple[str, Any]:
    return name, {"attrs": [["ETHTOOL_A_HEADER_DEV_NAME", interface]]}


def read_link(interface: str) -> LinkState:
    """Return the interface's link. Raises EngineError if there is none of that name."""
    with _explained(f"interface {interface}: asking for the link"):
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            raise EngineError(
                f"there is no interface {interface}: `ip -br link` lists those there are"
            ) from None
        with IPRoute() as route:
            (link,) = route.get_links(index)
    xdp = link.get_attr("IFLA_XDP")
    attached = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp is not None else 0
    return LinkState(index, link.get_attr("IFLA_MTU"), bool(link["flags"] & IFF_UP), bool(attached))


def read_htb_offload(interface: str, index: int) -> bool | None:
    """Return whether HTB is offloaded to the interface; None where that cannot be asked for."""
    with _explained(f"interface {interface}: asking for its queueing disciplines"):
        try:
            with IPRoute() as route:
                found = [one for one in route.get_qdiscs(index) if one["index"] == index]
        except NetlinkError as error:
            if error.code in _UNSUPPORTED:
                return None
            raise
    return any(is_htb_offload(one) for one in found)


def is_htb_offload(message: Any) -> bool:
    """Return whether a queueing discipline is HTB with TCA_HTB_OFFLOAD (pkt_sched.h)."""
    options = message.get_attr("TCA_OPTIONS")
    if message.get_attr("TCA_KIND") != "htb" or options is None:
        return False
    return any(name == "TCA_HTB_OFFLOAD" for name, _ in options["attrs"])


def read_rings(interface: str) -> Rings | None:
    """Return the ring parameters, or None where the driver has none."""
    with _explained(f"interface {interface}: asking for its rings"):
        header = _header("ETHTOOL_A_RINGS_HEADER", interface)
        found = _ask_if_known(ETHTOOL_GENL_NAME, _RingsMessage, ETHTOOL_MSG_RINGS_GET, [header])
    if not found:
        return None
    names = ("rx", "rx_max", "tcp_data_split", "hds_thresh", "hds_thresh_max")
    return Rings(**{n: found[0].get_attr(f"ETHTOOL_A_RINGS_{n.upper()}") for n in names})


def set_rings(interface: str, values: Mapping[RingName, int]) -> None:
    """Change some of the fields of Rings. Raises EngineError with the driver's reason."""
    attributes = [(f"ETHTOOL_A_RINGS_{name.upper()}", value) for name, value in values.items()]
    with _explained(f"interface {interface}: setting its rings"):
        header = _header("ETHTOOL_A_RINGS_HEADER", interface)
        _ask(
            ETHTOOL_GENL_NAME,
            _RingsMessage,
            ETHTOOL_MSG_RINGS_SET,
            [header, *attributes],
            NLM_F_ACK,
        )


def read_queue_count(interface: str) -> int | None:
    """Return how many rx queues the interface has, or None where the driver does not say."""
    with _explained(f"interface {interface}: asking for its channels"):
        header = _header("CHANNELS_HEADER", interface)
        found = _ask_if_known(
            ETHTOOL_GENL_NAME, _ChannelsMessage, ETHTOOL_MSG_CHANNELS_GET, [header]
        )
    if not found:
        return None
    counts = (found[0].get_attr(f"CHANNELS_{kind}_COUNT") for kind in ("COMBINED", "RX"))
    return sum(count or 0 for count in counts)


def read_spread(interface: str) -> dict[int, tuple[int, ...]]:
    """Return RSS context -> queue of each slot; context 0 is the interface's own."""
    with _explained(f"interface {interface}: asking for its RSS tables"):
        header = _header("RSS_HEADER", interface)
        found = _ask_if_known(
            ETHTOOL_GENL_NAME, _RssMessage, ETHTOOL_MSG_RSS_GET, [header], NLM_F_DUMP
        )
        # Kernels that cannot list contexts still report the interface's own.
        found = found or _ask_if_known(
            ETHTOOL_GENL_NAME, _RssMessage, ETHTOOL_MSG_RSS_GET, [header]
        )
    tables = ((one.get_attr("RSS_CONTEXT") or 0, one.get_attr("RSS_INDIR")) for one in found)
    return {context: tuple(table) for context, table in tables if table}


def read_irqs(interface: str, index: int) -> dict[int, int]:
    """Return NAPI id -> IRQ, as far as the driver says."""
    with _explained(f"interface {interface}: asking for its interrupts"):
        found = _ask_if_known(
            NETDEV_GENL_NAME,
            _NapiMessage,
            NETDEV_CMD_NAPI_GET,
            [("NAPI_IFINDEX", index)],
            NLM_F_DUMP,
        )
    pairs = ((one.get_attr("NAPI_ID"), one.get_attr("NAPI_IRQ")) for one in found)
    return {napi_id: irq for napi_id, irq in pairs if irq is not None}


def read_queues(interface: str, index: int) -> list[Queue]:
    """Return the rx queues, in order, with who holds them."""
    with _explained(f"interface {interface}: asking for its queues"):
        found = _ask_if_known(
            NETDEV_GENL_NAME,
            _QueueMessage,
            NETDEV_CMD_QUEUE_GET,
            [("QUEUE_IFINDEX", index)],
            NLM_F_DUMP,
        )
    queues = [_queue(one) for one in found if one.get_attr("QUEUE_TYPE") == NETDEV_QUEUE_TYPE_RX]
    return sorted(queues, key=lambda queue: queue.index)


def _queue(message: Any) -> Queue:
    holders: tuple[tuple[str, Holder], ...] = (
        ("QUEUE_IO_URING", "io_uring"),
        ("QUEUE_DMABUF", "devmem"),
        ("QUEUE_XSK", "AF_XDP"),
    )
    held = [holder for name, holder in holders if message.get_attr(name) is not None]
    provider = message.get_attr("QUEUE_IO_URING")
    return Queue(
        index=message.get_attr("QUEUE_ID"),
        napi_id=message.get_attr("QUEUE_NAPI_ID"),
        held_by=held[0] if held else None,
        rx_buf_len=provider.get_attr("PROVIDER_RX_BUF_LEN") if provider is not None else None,
    )
