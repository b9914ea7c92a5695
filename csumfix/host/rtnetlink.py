"""Asks the kernel for its lists of devices, routes and forwarding entries (rtnetlink(7)).

pyroute2 knows the messages. Its own sockets would bring in most of the package, and there is
little to do: the kernel puts the first part of its answer into the socket before send() returns.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Container, Iterator
from typing import Any

from csumfix.host.changes import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    kind_attribute,
    messages,
)
from csumfix.lean import parts_of

with parts_of("pyroute2"):
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

ERROR = struct.Struct("=i")

NEIGHBOUR_STATE = struct.Struct("=B3xiH")
"""struct ndmsg of linux/neighbour.h, up to its state: family, device, state."""

# linux/rtnetlink.h
RTM_GETLINK, RTM_GETROUTE, RTM_GETNEIGH = 18, 26, 30
RTEXT_FILTER_SKIP_STATS = 8

LARGEST = 1 << 16
"""Bytes of a datagram that are read; the kernel's are at most 32 KiB (net/netlink/af_netlink.c:
netlink_recvmsg())."""

TIMEOUT = 5
"""Seconds in which the kernel must answer."""

Message = Any
"""A message of pyroute2, decoded."""

__all__ = [
    "NetlinkDumpInterrupted",
    "NetlinkError",
    "device",
    "links",
    "members",
    "neighbours",
    "route_to",
    "routes",
]


def links(kind: str | None = None) -> list[Message]:
    """Return the network devices of one kind, such as "vxlan"; None for all.

    This function and the others raise NetlinkError if the kernel refuses, and
    NetlinkDumpInterrupted if the list changed while it was read and so may be incomplete.
    """
    request = ifinfmsg()
    request["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    if kind is None:
        return _ask(request, RTM_GETLINK, NLM_F_DUMP)
    request["attrs"].append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}))
    # Kernels before 4.6 do not filter, and none does while the kind's module is not loaded
    # (net/core/rtnetlink.c: rtnl_dump_ifinfo(), linkinfo_to_kind_ops()).
    wanted = kind_attribute(kind)
    answer = _ask(request, RTM_GETLINK, NLM_F_DUMP, lambda data: wanted in data)
    return [link for link in answer if link.get(("linkinfo", "kind")) == kind]


def members(master: int) -> list[Message]:
    """Return the network devices that this device is the master of: a VRF, a bridge or a bond."""
    request = ifinfmsg()
    request["attrs"] = [("IFLA_MASTER", master), ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    answer = _ask(request, RTM_GETLINK, NLM_F_DUMP)
    return [link for link in answer if link.get("master") == master]


def device(index: int, *, statistics: bool = False) -> Message | None:
    """Return the network device with this number; None if there is none."""
    request = ifinfmsg()
    request["index"] = index
    request["attrs"] = [("IFLA_EXT_MASK", 0 if statistics else RTEXT_FILTER_SKIP_STATS)]
    try:
        return next(iter(_ask(request, RTM_GETLINK, NLM_F_ACK)), None)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def neighbours(
    family: int = socket.AF_BRIDGE, devices: Container[int] | None = None, without: int = 0
) -> list[Message]:
    """Return the neighbours of a family; of AF_BRIDGE, the forwarding entries.

    devices: whose neighbours are meant; None for all devices.
    without: states (NUD_*), of which a neighbour must have none.
    """

    def is_meant(data: bytes) -> bool:
        _, index, state = NEIGHBOUR_STATE.unpack_from(data, HEADER.size)
        return not state & without and (devices is None or index in devices)

    request = ndmsg()
    request["family"] = family
    return _ask(request, RTM_GETNEIGH, NLM_F_DUMP, is_meant)


def routes(family: int) -> list[Message]:
    """Return the routes of an address family, of all tables."""
    request = rtmsg()
    request["family"] = family
    return _ask(request, RTM_GETROUTE, NLM_F_DUMP)


def route_to(address: str, device: int = 0) -> list[Message]:
    """Return the route that a packet to this address takes; device: by which it must leave."""
    request = rtmsg()
    request["family"] = socket.AF_INET6 if ":" in address else socket.AF_INET
    request["dst_len"] = 128 if ":" in address else 32
    request["attrs"] = [("RTA_DST", address)]
    if device:
        request["attrs"].append(("RTA_OIF", device))
    return _ask(request, RTM_GETROUTE, NLM_F_ACK)


def _ask(
    request: Message,
    kind: int,
    flags: int,
    is_meant: Callable[[bytes], bool] = lambda _: True,
) -> list[Message]:
    """Ask and decode the answer; is_meant: which of its messages, since decoding takes long."""
    request["header"] = {"type": kind, "flags": NLM_F_REQUEST | flags, "sequence_number": 1}
    request.encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(TIMEOUT)
        kernel.connect((0, 0))  # takes no messages from other processes
        kernel.sendall(request.data)
        return [_decoded(type(request), data) for data in _answer(kernel) if is_meant(data)]


def _decoded(kind: type[Message], data: bytes) -> Message:
    message = kind(data)
    message.decode()
    return message


def _answer(kernel: socket.socket) -> Iterator[bytes]:
    """Yield the messages of the answer up to the one that ends it."""
    while True:
        for data in messages(kernel.recv(LARGEST)):
            _, kind, flags, _, _ = HEADER.unpack_from(data)
            if flags & NLM_F_DUMP_INTR:
                raise NetlinkDumpInterrupted
            if kind not in (NLMSG_ERROR, NLMSG_DONE):
                yield data
                continue
            (error,) = ERROR.unpack_from(data, HEADER.size)
            if error:
                raise NetlinkError(-error)
            return
