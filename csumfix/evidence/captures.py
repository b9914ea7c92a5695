"""Finds and judges the tunnel packets among captured ones, from a file or as they arrive.

Packets that do not belong to a tunnel are ignored. Tunnel packets that cannot be judged are
counted with the reason.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from csumfix.core import Inner, Inspection, Outer, Policy, Status, inspect
from csumfix.evidence import links, segments
from csumfix.evidence.arrivals import Circumstances, Diagnosis, Judgement, Reason, judge
from csumfix.evidence.pcap import Capture
from csumfix.evidence.tapsocket import Direction
from csumfix.protocols import GENEVE_PORT, TITLES, Protocol, Protocols

UDP, HOP_BY_HOP, FRAGMENT = 17, 0, 44  # protocol numbers
IPV4_LATER_FRAGMENT = 0x1FFF
VXLAN_FLAGS = frozenset({0x08, 0x0C, 0x88})
"""First byte of a VXLAN header: plain, with next protocol (GPE), with group policy (GBP)."""

GENEVE_RESERVED, ETHERNET = 0x3F, bytes.fromhex("6558")  # RFC 8926, 3.4

ANY_PORT = Policy()


class Captured(NamedTuple):
    """A captured packet.

    number: from 1, as in Wireshark.
    packet: from its outer IP header on.
    length: its bytes on the wire; ``packet`` may have fewer.
    complete: see Circumstances.
    """

    number: int
    direction: Direction | None
    packet: bytes
    length: int
    complete: bool | None = None


class Judged(NamedTuple):
    """A judged tunnel packet.

    source, dest: outer addresses, as bytes.
    complete: see Circumstances.
    """

    number: int
    tunnel: str
    port: int
    direction: Direction | None
    source: bytes
    dest: bytes
    judgement: Judgement
    seen: Inspection
    complete: bool | None


class FileSource:
    """The packets of a capture file.

    frames: number of frames read so far.
    unknown_links: frames with an unknown link type, by type.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.frames = 0
        self.unknown_links: Counter[int] = Counter()

    def notes(self) -> list[str]:
        """Return what was not read."""
        unknown = [
            f"{number} packets of link type {link}, which csumfix does not know"
            for link, number in self.unknown_links.most_common(1)
        ]
        return [self._capture.note] * bool(self._capture.note) + unknown

    def __iter__(self) -> Iterator[Captured]:
        for number, frame in enumerate(self._capture, start=1):
            self.frames = number
            found = links.network(frame)
            if found is None:
                self.unknown_links[frame.link] += 1
            elif found.packet:
                yield Captured(number, found.direction, found.packet, found.length)


class Examiner:
    """Judges packets to the ports of tunnels.

    ports: what they carry; Geneve's well-known port is always among them.
    local: addresses of the host where the packets were captured.
    forced: the direction of all packets, if known.
    """

    def __init__(
        self,
        ports: Protocols,
        local: Iterable[bytes] = (),
        forced: Direction | None = None,
    ) -> None:
        self._ports: Protocols = {GENEVE_PORT: "geneve", **ports}
        self._policy = Policy.of(self._ports)
        self._local = frozenset(local)
        self._forced = forced
        self.other_ports: Counter[tuple[int, Protocol]] = Counter()
        """Packets to other ports that look like a tunnel's, by port."""

    def examine(self, captured: Captured) -> Judged | None:
        """Judge a packet; None if it does not belong to a tunnel."""
        packet = captured.packet
        seen = inspect(packet, self._policy)
        if seen.status is Status.OK:
            return self._judged(captured, seen)
        if seen.status in (Status.NOT_IP, Status.NOT_UDP):
            return None
        if seen.status is Status.OTHER_PORT:
            self._note_other_port(captured.packet)
            return None
        return self._unjudged(captured, seen)

    def _note_other_port(self, packet: bytes) -> None:
        port = _port(packet)
        looks_like = _looks_like(packet, port) if port else None
        if port and looks_like:
            self.other_ports[port, looks_like] += 1

    def _judged(self, captured: Captured, seen: Inspection) -> Judged:
        protocol = self._ports[seen.dest]
        source, dest = addresses(captured.packet)
        direction = self._direction(source, dest, captured.direction)
        if seen.outer is Outer.RIGHT and seen.inner is Inner.RIGHT:  # most are
            judgement = Judgement(Diagnosis.RIGHT)
        else:
            tcp_data = segments.has_tcp_data(captured.packet, protocol)
            how = Circumstances(direction, captured.complete, tcp_data, captured.length)
            judgement = judge(seen, how)
        return Judged(
            captured.number,
            TITLES[protocol],
            seen.dest,
            direction,
            source,
            dest,
            judgement,
            seen,
            captured.complete,
        )

    def _unjudged(self, captured: Captured, seen: Inspection) -> Judged | None:
        """Return why a packet cannot be judged; None if it is to another port."""
        port = _port(captured.packet)
        if port is None or port not in self._ports:
            return None
        source, dest = addresses(captured.packet)
        return Judged(
            captured.number,
            TITLES[self._ports[port]],
            port,
            self._direction(source, dest, captured.direction),
            source,
            dest,
            Judgement(Diagnosis.UNJUDGED, _reason(captured, seen.status)),
            seen,
            captured.complete,
        )

    def _direction(
        self, source: bytes, dest: bytes, captured: Direction | None
    ) -> Direction | None:
        if self._forced:
            return self._forced
        if source in self._local:
            return Direction.OUT
        return Direction.IN if dest in self._local else captured


def addresses(packet: bytes) -> tuple[bytes, bytes]:
    """Return the source and the destination address of an IP packet."""
    if packet[0] >> 4 == 4:  # noqa: PLR2004 - IP version
        return packet[12:16], packet[16:20]
    return packet[8:24], packet[24:40]


def address_text(address: bytes) -> str:
    """Return an address in text form; "?" if its length is wrong."""
    if len(address) not in (4, 16):
        return "?"
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6  # noqa: PLR2004
    return socket.inet_ntop(family, address)


def _reason(captured: Captured, status: Status) -> Reason:
    packet = captured.packet
    at = 2 if packet[0] >> 4 == 4 else 4  # noqa: PLR2004 - IP version, where its length is
    if not any(packet[at : at + 2]):
        return Reason.NO_LENGTH
    if status in (Status.MALFORMED_IP, Status.MALFORMED_UDP) and len(packet) < captured.length:
        return Reason.CUT_SHORT
    return {
        Status.FRAGMENT: Reason.FRAGMENT,
        Status.REROUTED: Reason.REROUTED,
        Status.NOT_VXLAN: Reason.NO_TUNNEL,
        Status.NOT_GENEVE: Reason.NO_TUNNEL,
    }.get(status, Reason.MALFORMED)


def _port(packet: bytes) -> int | None:
    """Return the UDP destination port; None if there is none, or the packet is too short."""
    try:
        at = _udp(packet)
        return packet[at + 2] << 8 | packet[at + 3] if at else None
    except IndexError:
        return None


def _udp(packet: bytes) -> int:
    """Return where the UDP header is; 0 if there is none, as in later fragments."""
    if packet[0] >> 4 == 4:  # noqa: PLR2004 - IP version
        later = (packet[6] << 8 | packet[7]) & IPV4_LATER_FRAGMENT
        return segments.udp_offset(packet) if packet[9] == UDP and not later else 0
    header, at = packet[6], segments.IPV6_HEADER
    if header == HOP_BY_HOP:  # BIG TCP has one (RFC 2675)
        header, at = packet[at], at + (packet[at + 1] + 1) * 8
    if header == FRAGMENT:
        later = (packet[at + 2] << 8 | packet[at + 3]) & ~7
        header, at = (packet[at], at + 8) if not later else (FRAGMENT, at)
    return at if header == UDP else 0


def _looks_like(packet: bytes, port: int) -> Protocol | None:
    """Tell what a UDP packet carries by its contents: reserved bits, inner checksum."""
    at = segments.udp_offset(packet) + segments.UDP_HEADER
    header = packet[at : at + segments.TUNNEL_HEADER]
    if len(header) < segments.TUNNEL_HEADER or header[-1]:
        return None
    if header[0] in VXLAN_FLAGS and not any(header[1:3]) and _is_proven(packet, ANY_PORT):
        return "vxlan"
    geneve = Policy(geneve=(port,))
    if not header[1] & GENEVE_RESERVED and header[2:4] == ETHERNET and _is_proven(packet, geneve):
        return "geneve"
    return None


def _is_proven(packet: bytes, policy: Policy) -> bool:
    return inspect(packet, policy).inner in (Inner.RIGHT, Inner.PARTIAL)
