"""Finds the IP packet in a captured frame and the frame's direction, for each link type.

The numbers are from https://www.tcpdump.org/linktypes.html.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from csumfix.evidence.pcap import Frame
from csumfix.evidence.tapsocket import Direction

NULL, ETHERNET, RAW, LOOP, COOKED, IPV4, IPV6, COOKED2 = 0, 1, 101, 108, 113, 228, 229, 276
RAW_BSD, RAW_OPENBSD = 12, 14  # DLT_RAW, which some programs write to files

IP_TYPES = {b"\x08\x00", b"\x86\xdd"}
VLAN_TYPES = {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}
VLAN_TAGS = 4
OUTGOING = 4  # PACKET_OUTGOING in linux/if_packet.h; lower types have arrived


class Network(NamedTuple):
    """The IP packet of a frame.

    packet: from its IP header on; empty if the frame has no IP packet.
    length: its bytes on the wire, including any padding that the link added.
    """

    packet: bytes
    length: int
    direction: Direction | None


def network(frame: Frame) -> Network | None:
    """Return the IP packet of a frame; None if its link type is unknown."""
    find = LINKS.get(frame.link)
    if find is None:
        return None
    start, direction = find(frame.data)
    if start < 0:
        return Network(b"", 0, None)
    return Network(frame.data[start:], frame.length - start, frame.direction or direction)


def _behind_type(data: bytes, at: int, next_layer: int) -> int:
    """Return where IP begins, given where the EtherType is; -1 if it is not IP."""
    for _ in range(VLAN_TAGS + 1):
        kind = data[at : at + 2]
        if kind in IP_TYPES:
            return next_layer
        if kind not in VLAN_TYPES:
            return -1
        at, next_layer = next_layer + 2, next_layer + 4
    return -1


def _ethernet(data: bytes) -> tuple[int, None]:
    return _behind_type(data, 12, 14), None


def _arrived(kind: int) -> Direction:
    return Direction.OUT if kind == OUTGOING else Direction.IN


def _cooked(data: bytes) -> tuple[int, Direction | None]:
    """Linux cooked capture: 16 bytes of packet type, address and, at the end, the EtherType."""
    start = _behind_type(data, 14, 16)
    return (start, _arrived(data[1])) if start > 0 else (-1, None)


def _cooked2(data: bytes) -> tuple[int, Direction | None]:
    """Its second version: 20 bytes that begin with the EtherType."""
    start = _behind_type(data, 0, 20)
    return (start, _arrived(data[10])) if 0 < start <= len(data) else (-1, None)


def _raw(_: bytes) -> tuple[int, None]:
    return 0, None


def _behind_family(_: bytes) -> tuple[int, None]:
    """BSD loopback: 4 bytes of address family, which the IP version makes redundant."""
    return 4, None


LINKS: dict[int, Callable[[bytes], tuple[int, Direction | None]]] = {
    ETHERNET: _ethernet,
    COOKED: _cooked,
    COOKED2: _cooked2,
    **dict.fromkeys((RAW, RAW_BSD, RAW_OPENBSD, IPV4, IPV6), _raw),
    **dict.fromkeys((NULL, LOOP), _behind_family),
}
