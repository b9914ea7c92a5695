"""Decides which netlink events change something for csumfix. Pure: bytes in, yes or no out.

A host with many containers has thousands of events per second, and nearly all of them are about
devices and rules that are not ours. So each message is read only as far as is needed to tell.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
NEIGHBOUR = struct.Struct("=B3xi")  # struct ndmsg, its beginning: family, index
ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, lengths, TOS, table, protocol, scope, type
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTN_UNICAST = 1

# linux/if_link.h
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_DATA = 3, 4, 18, 2

ALIGNMENT = 4
TYPE_MASK = 0x3FFF  # linux/netlink.h: NLA_TYPE_MASK


def _string_attribute(kind: int, text: bytes) -> bytes:
    data = text + b"\0"
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data


def kind_attribute(kind: str) -> bytes:
    """Return IFLA_INFO_KIND of devices of a kind, such as "vxlan"."""
    return _string_attribute(1, kind.encode())


TUNNELS = tuple(map(kind_attribute, ("vxlan", "geneve")))

IN_MANGLE = _string_attribute(1, b"mangle")
"""NFTA_TABLE_NAME, NFTA_CHAIN_TABLE or NFTA_RULE_TABLE of table mangle."""

IN_OURS = _string_attribute(1, b"csumfix")
"""The same, and NFTA_SET_TABLE, of the table that csumfix-rules makes with nft."""

RTA_DST = 1
TO_LINK_LOCAL = ATTRIBUTE.pack(ATTRIBUTE.size + 16, RTA_DST) + bytes.fromhex("fe80") + bytes(14)
"""The route for IPv6 link-local addresses that each device has while it is up."""


class Changes:
    """What events of one kind have told so far."""

    def concern_us(self, datagram: bytes) -> bool:
        """Tell whether any event in the datagram changes something for us."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forget it, because events were lost."""


class LinkChanges(Changes):
    """Whether a tunnel's device appeared, changed or went, or an underlay went.

    The kernel announces a device for each change of its state, its carrier or its bridge. Only its
    name, its MTU and its tunnel parameters matter.
    """

    def __init__(self) -> None:
        self._tunnels: frozenset[int] = frozenset()
        self._underlays: frozenset[int] = frozenset()
        self._seen: dict[int, tuple[bytes, ...]] = {}

    def expect(self, tunnels: frozenset[int], underlays: frozenset[int]) -> None:
        """Look for events about these devices, and about any other tunnel's device."""
        self._tunnels, self._underlays = tunnels, underlays

    def concern_us(self, datagram: bytes) -> bool:
        """See the base class."""
        changed = False
        for message in messages(datagram):  # all of them: each is remembered
            changed |= self._is_change(message)
        return changed

    def forget(self) -> None:
        """See the base class."""
        self._seen = {}

    def _is_change(self, message: bytes) -> bool:
        kind = HEADER.unpack_from(message)[1]
        if kind not in (RTM_NEWLINK, RTM_DELLINK) or len(message) < HEADER.size + LINK.size:
            return False
        family, _, index, _, _ = LINK.unpack_from(message, HEADER.size)
        if family != socket.AF_UNSPEC:  # a bridge announces its ports
            return False
        if kind == RTM_DELLINK:
            known = self._seen.pop(index, None) is not None
            return known or index in self._tunnels or index in self._underlays
        if not any(kind in message for kind in TUNNELS):
            return False
        now = _essence(message)
        before, self._seen[index] = self._seen.get(index), now
        return now != before


class RouteChanges(Changes):
    """Whether a tunnel that is bound to no underlay may now send by another one."""

    def __init__(self) -> None:
        self._unbound: frozenset[int] = frozenset()
        self._routed = False

    def expect(self, unbound: frozenset[int], *, routed: bool) -> None:
        """Look for events about these devices, which are bound to no underlay.

        routed: whether routes decide by which device the packets of some tunnel leave.
        """
        self._unbound, self._routed = unbound, routed

    def concern_us(self, datagram: bytes) -> bool:
        """See the base class."""
        return self._routed and any(map(self._is_change, messages(datagram)))

    def _is_change(self, message: bytes) -> bool:
        kind = HEADER.unpack_from(message)[1]
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return _leads_elsewhere(message)
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return False
        if len(message) < HEADER.size + NEIGHBOUR.size:
            return False
        family, index = NEIGHBOUR.unpack_from(message, HEADER.size)
        return family == socket.AF_BRIDGE and index in self._unbound


def _leads_elsewhere(message: bytes) -> bool:
    """Tell whether a route can lead to a remote VTEP; local and link-local ones cannot."""
    if len(message) < HEADER.size + ROUTE.size:
        return False
    kind = ROUTE.unpack_from(message, HEADER.size)[7]
    return kind == RTN_UNICAST and TO_LINK_LOCAL not in message


class RuleChanges(Changes):
    """Whether rules have changed in the tables that have ours."""

    def concern_us(self, datagram: bytes) -> bool:
        """See the base class."""
        return IN_MANGLE in datagram or IN_OURS in datagram


def messages(datagram: bytes) -> Iterator[bytes]:
    """Yield the netlink messages of a datagram, each with its header."""
    start = 0
    while start + HEADER.size <= len(datagram):
        length = HEADER.unpack_from(datagram, start)[0]
        if length < HEADER.size:
            return
        yield datagram[start : start + length]
        start += _aligned(length)


def _essence(message: bytes) -> tuple[bytes, ...]:
    """Return the name, the MTU and the parameters of a tunnel's device, not decoded."""
    found = {}
    for kind, data in attributes(message[HEADER.size + LINK.size :]):
        if kind in (IFLA_IFNAME, IFLA_MTU):
            found[kind] = data
        elif kind == IFLA_LINKINFO:
            found[kind] = dict(attributes(data)).get(IFLA_INFO_DATA, b"")
    return tuple(found.values())


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the contents of each attribute."""
    start = 0
    while start + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < ATTRIBUTE.size:
            return
        yield kind & TYPE_MASK, data[start + ATTRIBUTE.size : start + length]
        start += _aligned(length)


def _aligned(length: int) -> int:
    return (length + ALIGNMENT - 1) & -ALIGNMENT
