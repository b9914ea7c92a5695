"""The packets of probes, byte for byte, and how their answers are recognised. Pure.

Every kind of probe has a number of its own, 65301 to 65313. It is the destination port of a TCP
probe and the identifier of an ICMP one, so a capture or a firewall's log shows which kind a packet
is of. The packets are:

- A TCP segment with the flag SYN and nothing else set: no options, no data, window 1024. The
  sequence number is random. A closed port answers with RST, an open one with SYN and ACK; either
  acknowledges the sequence number plus 1.
- A TCP segment with the flag ACK, sequence number 1, and 500 zeros as data, or 1,000 in a GSO
  packet that somebody has to make two such segments of. Either port answers with RST, because
  there is no such connection; its sequence number is the one that was acknowledged.
- An ICMP or ICMPv6 echo request, with zeros as data. The sequence number tells probes apart.
- The same whose last four bytes of data are 12 34 db 97. A virtio_net_hdr says that the checksum
  of these four bytes is to be put into the first two of them, where it already is. This changes
  nothing, whoever does it or does not. But because something is left to offload, the kernel
  computes the outer checksum itself (local checksum offload: net/ipv4/udp.c, udp_set_csum()).
- All in an IP header without options or extension headers: TTL or hop limit 64, DF set over
  IPv4, identification 0, traffic class 0.

A checksum is either complete, or left to offload: then the field holds the sum of the pseudo
header, as the kernel's own packets have it (CHECKSUM_PARTIAL), and a virtio_net_hdr says where the
checksum is to be computed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from csumfix.core import checksum
from csumfix.protocols import Protocol

NUMBERS = range(65301, 65314)
"""Ports and identifiers of probes: behind the ports that NodePorts and most systems draw from."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58  # protocol numbers
ETHERTYPES = {4: 0x0800, 6: 0x86DD}  # by IP version
ECHO_REQUESTS, ECHO_REPLIES = {4: 8, 6: 128}, {4: 0, 6: 129}
SYN, RST, ACK = 0x02, 0x04, 0x10
TTL, WINDOW = 64, 1024

ETHERNET = struct.Struct("!6s6sH")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
IPV6 = struct.Struct("!IHBB16s16s")
SEGMENT = struct.Struct("!HHIIBBHHH")  # a TCP header
DATAGRAM = struct.Struct("!HHHH")  # a UDP header
MESSAGE = struct.Struct("!BBHHH")  # an ICMP echo header
TUNNEL_HEADERS: Mapping[Protocol, bytes] = {
    "vxlan": bytes.fromhex("08000000"),  # the VNI is valid
    "geneve": bytes.fromhex("00006558"),  # no options; an Ethernet frame follows
}
"""What comes before the VNI (RFC 7348; RFC 8926, 3.4)."""

VNET = struct.Struct("=BBHHHH")
"""struct virtio_net_hdr of a packet socket: in the host's byte order."""
NEEDS_CHECKSUM = 1  # linux/virtio_net.h: VIRTIO_NET_HDR_F_NEEDS_CSUM
GSO_TCP = {4: 1, 6: 4}  # VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6; by IP version
SEGMENT_DATA, SEGMENTS = 500, 2  # bytes of each segment, and how many a GSO packet has

INVARIANT = bytes.fromhex("1234 db97")
"""0x1234 is the complement of the sum of both."""

TCP_CHECKSUM, ICMP_CHECKSUM, UDP_CHECKSUM = 16, 2, 6  # offsets of the field


@dataclass(frozen=True)
class Ends:
    """The inner ends of a probe: MAC and IP addresses as bytes, both IP addresses of a family."""

    source_mac: bytes
    dest_mac: bytes
    source: bytes
    dest: bytes

    @property
    def version(self) -> int:
        """The version of IP: 4 or 6."""
        return 4 if len(self.dest) == 4 else 6  # noqa: PLR2004 - bytes of an address


def syn(ends: Ends, ports: tuple[int, int], sequence: int, *, complete: bool) -> bytes:
    """Return a virtio_net_hdr and a frame with a SYN; ports: source, destination."""
    segment = SEGMENT.pack(*ports, sequence, 0, SEGMENT.size // 4 << 4, SYN, WINDOW, 0, 0)
    return _frame(ends, TCP, segment, TCP_CHECKSUM, complete=complete)


def data(ends: Ends, ports: tuple[int, int], acknowledged: int, *, gso: bool) -> bytes:
    """Return a virtio_net_hdr and a frame with data of no connection.

    gso: two segments in one packet, checksums left to offload; else one, complete.
    """
    header = SEGMENT.pack(*ports, 1, acknowledged, SEGMENT.size // 4 << 4, ACK, WINDOW, 0, 0)
    if not gso:
        return _frame(ends, TCP, header + bytes(SEGMENT_DATA), TCP_CHECKSUM, complete=True)
    payload = header + bytes(SEGMENTS * SEGMENT_DATA)
    frame = _frame(ends, TCP, payload, TCP_CHECKSUM, complete=False)
    flags, _, _, _, start, field = VNET.unpack_from(frame)
    headers = start + SEGMENT.size
    vnet = VNET.pack(flags, GSO_TCP[ends.version], headers, SEGMENT_DATA, start, field)
    return vnet + frame[VNET.size :]


def echo(ends: Ends, number: int, sequence: int, length: int, *, complete: bool) -> bytes:
    """Return a virtio_net_hdr and a frame with an echo request and this many zeros of data."""
    kind = ECHO_REQUESTS[ends.version]
    message = MESSAGE.pack(kind, 0, 0, number, sequence & 0xFFFF) + bytes(length)
    protocol = ICMP if ends.version == 4 else ICMPV6  # noqa: PLR2004
    return _frame(ends, protocol, message, ICMP_CHECKSUM, complete=complete)


def echo_outer(ends: Ends, number: int, sequence: int, length: int) -> bytes:
    """Return the same, complete, of which the kernel computes the outer checksum, too."""
    kind = ECHO_REQUESTS[ends.version]
    data = bytes(length - len(INVARIANT)) + INVARIANT
    message = MESSAGE.pack(kind, 0, 0, number, sequence & 0xFFFF) + data
    protocol = ICMP if ends.version == 4 else ICMPV6  # noqa: PLR2004
    frame = _frame(ends, protocol, message, ICMP_CHECKSUM, complete=True)
    start = len(frame) - VNET.size - len(INVARIANT)
    return VNET.pack(NEEDS_CHECKSUM, 0, 0, 0, start, 0) + frame[VNET.size :]


def echo_data(version: int, mtu: int) -> int:
    """Return how much data fills an echo request up to an MTU."""
    ip = IPV4 if version == 4 else IPV6  # noqa: PLR2004
    return max(0, mtu - ip.size - MESSAGE.size)


def encapsulated(protocol: Protocol, vni: int, frame: bytes) -> bytes:
    """Return the payload of a tunnel datagram around a frame of this module."""
    return TUNNEL_HEADERS[protocol] + (vni << 8).to_bytes(4) + frame[VNET.size :]


def datagram(source: bytes, dest: bytes, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP header with its checksum, and the payload."""
    length = DATAGRAM.size + len(payload)
    plain = DATAGRAM.pack(*ports, length, 0) + payload
    value = checksum(_pseudo(source, dest, UDP, length) + plain) ^ 0xFFFF
    return _with(plain, UDP_CHECKSUM, value or 0xFFFF)


def _frame(ends: Ends, protocol: int, payload: bytes, field: int, *, complete: bool) -> bytes:
    pseudo = _pseudo(ends.source, ends.dest, protocol, len(payload))
    if protocol == ICMP:  # has no pseudo header
        pseudo = b""
    if complete:
        vnet = bytes(VNET.size)
        payload = _with(payload, field, checksum(pseudo + payload) ^ 0xFFFF)
    else:
        start = ETHERNET.size + (IPV4.size if ends.version == 4 else IPV6.size)  # noqa: PLR2004
        vnet = VNET.pack(NEEDS_CHECKSUM, 0, 0, 0, start, field)
        payload = _with(payload, field, checksum(pseudo))
    ethernet = ETHERNET.pack(ends.dest_mac, ends.source_mac, ETHERTYPES[ends.version])
    return vnet + ethernet + _header(ends, protocol, len(payload)) + payload


def _header(ends: Ends, protocol: int, length: int) -> bytes:
    if ends.version == 6:  # noqa: PLR2004
        return IPV6.pack(6 << 28, length, protocol, TTL, ends.source, ends.dest)
    total = IPV4.size + length
    plain = IPV4.pack(0x45, 0, total, 0, 0x4000, TTL, protocol, 0, ends.source, ends.dest)
    return _with(plain, 10, checksum(plain) ^ 0xFFFF)


def _pseudo(source: bytes, dest: bytes, protocol: int, length: int) -> bytes:
    return source + dest + struct.pack("!II", length, protocol)


def _with(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + value.to_bytes(2) + data[at + 2 :]


# -------------------------------------------------------------------------------- recognition


class Seen(NamedTuple):
    """A packet that belongs to a probe.

    number: see NUMBERS.
    remote: the inner address at the other end.
    token: the sequence number that was sent, or that is answered.
    """

    number: int
    remote: bytes
    token: int


def question(packet: bytes) -> Seen | None:
    """Recognise a probe by its inner packet, from the IP header on; None if it is none."""
    return _seen(packet, answers=False)


def answer(packet: bytes) -> Seen | None:
    """Recognise the answer to a probe; None if it is none."""
    return _seen(packet, answers=True)


def _seen(packet: bytes, *, answers: bool) -> Seen | None:
    try:
        version = packet[0] >> 4
        if version == 4:  # noqa: PLR2004
            protocol, at = packet[9], (packet[0] & 15) * 4
            remote = packet[12:16] if answers else packet[16:20]
        else:
            protocol, at = packet[6], IPV6.size
            remote = packet[8:24] if answers else packet[24:40]
        number, token = _identity(packet[at:], protocol, version, answers=answers)
    except (IndexError, struct.error):
        return None
    return Seen(number, remote, token) if number in NUMBERS and token >= 0 else None


def _identity(payload: bytes, protocol: int, version: int, *, answers: bool) -> tuple[int, int]:
    """Return the number and the sequence number of a probe; (0, 0) if it is none."""
    if protocol == TCP:
        source, dest, sequence, acknowledged = struct.unpack_from("!HHII", payload)
        if answers:
            return source, _answered(payload[13], sequence, acknowledged)
        if payload[13] == ACK:
            return dest, acknowledged
        return (dest, sequence) if payload[13] == SYN else (0, 0)
    if protocol in (ICMP, ICMPV6):
        kind, _, _, number, sequence = MESSAGE.unpack_from(payload)
        wanted = ECHO_REPLIES if answers else ECHO_REQUESTS
        return (number, sequence) if kind == wanted.get(version) else (0, 0)
    return (0, 0)


def _answered(flags: int, sequence: int, acknowledged: int) -> int:
    """Return the number that a TCP segment answers; -1 if it is no answer (RFC 9293, 3.10.7.1)."""
    if flags & RST and not flags & ACK:
        return sequence
    return acknowledged - 1 & 0xFFFFFFFF if flags & (SYN | RST) else -1
