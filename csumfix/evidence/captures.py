"""Finds and judges the tunnel packets among captured ones, from a file or as they arrive.

Packets that do not belong to a tunnel are ignored. Tunnel packets that cannot be judged are
counted with the reason.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from csumfix.core import Inner, Inspection, Outer, Policy, Status, inspect, inspect_geneve
from csumfix.evidence import links, segments
from csumfix.evidence.arrivals import Circumstances, Diagnosis, Reason, Verdict, judge
from csumfix.evidence.pcap import Capture
from csumfix.evidence.tapsocket import Direction

GENEVE_PORT = 6081
UDP, HOP_BY_HOP, FRAGMENT = 17, 0, 44  # protocol numbers
IPV4_LATER_FRAGMENT = 0x1FFF
VXLAN_FLAGS = frozenset({0x08, 0x0C, 0x88})
"""First byte of a VXLAN header: plain, with next protocol (GPE), with group policy (GBP)."""

ANY_PORT = Policy()
GENEVE = Policy((GENEVE_PORT,))


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
    verdict: Verdict
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

    ports: VXLAN ports.
    local: addresses of the host where the packets were captured.
    forced: the direction of all packets, if known.
    """

    def __init__(
        self,
        ports: Iterable[int],
        local: Iterable[bytes] = (),
        forced: Direction | None = None,
    ) -> None:
        self._policy = Policy(tuple(sorted(set(ports) - {GENEVE_PORT})))
        self._ports = frozenset(self._policy.ports) | {GENEVE_PORT}
        self._local = frozenset(local)
        self._forced = forced
        self.other_ports: Counter[int] = Counter()
        """Packets to other ports that look like VXLAN, by port."""

    def examine(self, captured: Captured) -> Judged | None:
        """Judge a packet; None if it does not belong to a tunnel."""
        packet = captured.packet
        seen = inspect(packet, self._policy)
        if seen.status is Status.OK:
            return self._judged(captured, seen, geneve=False)
        if seen.status in (Status.NOT_IP, Status.NOT_UDP):
            return None
        if seen.status is Status.OTHER_PORT:
            return self._other_port(captured)
        return self._unjudged(captured, seen)

    def _other_port(self, captured: Captured) -> Judged | None:
        port = _port(captured.packet)
        if port == GENEVE_PORT:
            seen = inspect_geneve(captured.packet, GENEVE)
            if seen.status is Status.OK:
                return self._judged(captured, seen, geneve=True)
            return self._unjudged(captured, seen)
        if port and _looks_like_vxlan(captured.packet):
            self.other_ports[port] += 1
        return None

    def _judged(self, captured: Captured, seen: Inspection, *, geneve: bool) -> Judged:
        source, dest = addresses(captured.packet)
        direction = self._direction(source, dest, captured.direction)
        if seen.outer is Outer.RIGHT and seen.inner is Inner.RIGHT:  # most are
            verdict = Verdict(Diagnosis.RIGHT)
        else:
            tcp_data = segments.has_tcp_data(captured.packet, geneve=geneve)
            how = Circumstances(direction, captured.complete, tcp_data, captured.length)
            verdict = judge(seen, how)
        return Judged(
            captured.number,
            "Geneve" if geneve else "VXLAN",
            seen.dest,
            direction,
            source,
            dest,
            verdict,
            seen,
            captured.complete,
        )

    def _unjudged(self, captured: Captured, seen: Inspection) -> Judged | None:
        """Return why a packet cannot be judged; None if it is to another port."""
        port = _port(captured.packet)
        if port not in self._ports:
            return None
        source, dest = addresses(captured.packet)
        return Judged(
            captured.number,
            "Geneve" if port == GENEVE_PORT else "VXLAN",
            port,
            self._direction(source, dest, captured.direction),
            source,
            dest,
            Verdict(Diagnosis.UNJUDGED, _reason(captured, seen.status)),
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


def _looks_like_vxlan(packet: bytes) -> bool:
    """Tell whether a UDP packet is VXLAN by its contents: reserved bits, inner checksum."""
    at = segments.udp_offset(packet) + segments.UDP_HEADER
    header = packet[at : at + segments.VXLAN]
    if not header or header[0] not in VXLAN_FLAGS or any(header[1:3]) or header[-1]:
        return False
    return inspect(packet, ANY_PORT).inner in (Inner.RIGHT, Inner.PARTIAL)
