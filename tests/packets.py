"""Tunnel packets built by scapy, whose checksums the tests take for the truth."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Timestamp, in4_chksum
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import checksum

PORT, GENEVE_PORT = 8472, 6081
VNI = 0x123456
SOURCES = {4: "10.0.0.", 6: "fd00::"}  # and a host number
DESTINATIONS = {4: "10.0.0.2", 6: "fd00::2"}

# The same examples in every run, and no deadlines: the machines that run these are noisy.
reproducible = settings(derandomize=True, deadline=None, max_examples=150, database=None)


class Transport(enum.Enum):
    """What the inner packet holds."""

    UDP = enum.auto()
    TCP = enum.auto()
    ICMP = enum.auto()  # or ICMPv6, as the inner version is
    ZERO_UDP = enum.auto()  # checksum 0: not computed
    OTHER = enum.auto()  # a protocol that the core does not know
    FRAGMENT = enum.auto()  # the first of several
    NO_IP = enum.auto()  # ARP


# Where a transport has its checksum field.
CHECK_OFFSET = {Transport.UDP: 6, Transport.TCP: 16, Transport.ICMP: 2}


@dataclass(frozen=True)
class Shape:
    """All that tells one tunnel packet from another."""

    version: int = 4
    options: bool = False  # IPv4 options or IPv6 extension headers outside
    host: int = 1  # of the outer source address
    source_port: int = 40000
    port: int = PORT
    vni: int = VNI
    tags: int = 0  # VLAN tags: 0, 1 or 2
    inner_version: int = 4
    inner_options: bool = False
    transport: Transport = Transport.UDP
    payload: bytes = b"payload"
    padding: bytes = b""  # behind the inner packet, inside the frame
    geneve: bytes | None = None  # Geneve's options, if it is not VXLAN

    @property
    def proven(self) -> bool:
        """Whether a checksum of the inner packet's own covers its payload."""
        return self.transport in {Transport.UDP, Transport.TCP, Transport.ICMP}


@dataclass(frozen=True)
class Tunnel:
    """A packet with right checksums, and where its parts begin."""

    data: bytes
    udp: int  # outer UDP header
    inner_ip: int
    inner_l4: int
    inner_end: int  # of the inner IP packet

    @property
    def check(self) -> int:
        """The outer checksum field."""
        return int.from_bytes(self.data[self.udp + 6 : self.udp + 8], "big")

    def with_check(self, check: int) -> bytes:
        """Return the packet with another outer checksum."""
        return self.with_bytes(self.udp + 6, struct.pack("!H", check)).data

    def with_bytes(self, at: int, new: bytes) -> Tunnel:
        """Return it with other bytes, and no checksum recomputed."""
        return replace(self, data=self.data[:at] + new + self.data[at + len(new) :])


def _ip(version: int, options: bool, protocol: int, host: int = 1) -> Packet:
    """Return the IP header with its options; its last layer takes the payload."""
    source, dest = f"{SOURCES[version]}{host}", DESTINATIONS[version]
    if version == 4:
        some = [IPOption_NOP(), IPOption_Timestamp()] if options else []
        return IP(src=source, dst=dest, options=some, proto=protocol)
    if not options:
        return IPv6(src=source, dst=dest, nh=protocol)
    padding = [PadN(optdata=b"\0" * 4)]
    chain = IPv6(src=source, dst=dest) / IPv6ExtHdrHopByHop(options=padding)
    return chain / IPv6ExtHdrDestOpt(options=padding, nh=protocol)


def _fragment(version: int) -> Packet:
    if version == 4:
        return IP(src="10.0.0.1", dst="10.0.0.2", flags="MF", proto=17)
    return IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(m=1, nh=17)


def protocol_of(shape: Shape) -> int:
    """Return the number of the inner transport."""
    if shape.transport is Transport.ICMP:
        return 1 if shape.inner_version == 4 else 58
    return {Transport.TCP: 6, Transport.OTHER: 132}.get(shape.transport, 17)


def _transport(shape: Shape) -> Packet:
    match shape.transport:
        case Transport.ICMP:
            echo = ICMP() if shape.inner_version == 4 else ICMPv6EchoRequest()
            return echo / Raw(shape.payload)
        case Transport.TCP:
            return TCP(sport=1234, dport=80) / Raw(shape.payload)
        case Transport.UDP:
            return UDP(sport=1234, dport=54) / Raw(shape.payload)
        case Transport.ZERO_UDP:
            return UDP(sport=1234, dport=54, chksum=0) / Raw(shape.payload)
        case _:
            return Raw(shape.payload)


def _inner(shape: Shape) -> Packet:
    """Return the inner packet from its IP header on."""
    if shape.transport is Transport.NO_IP:
        return ARP(psrc="10.1.0.1", pdst="10.1.0.2")
    if shape.transport is Transport.FRAGMENT:
        return _fragment(shape.inner_version) / Raw(shape.payload)
    header = _ip(shape.inner_version, shape.inner_options, protocol_of(shape))
    return header / _transport(shape)


def _frame(shape: Shape) -> tuple[bytes, bytes, Packet]:
    """Return the inner frame's header, its content, and the content as scapy's packet."""
    inner = _inner(shape)
    header: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if shape.tags:
        header = header / (Dot1AD(vlan=1) / Dot1Q(vlan=2) if shape.tags == 2 else Dot1Q(vlan=1))
    frame, content = bytes(header / inner), bytes(inner)
    return frame[: len(frame) - len(content)], content, inner


def _transport_offset(ip: Packet) -> int:
    """Return the length of the IP headers in front of the transport header."""
    layer, length = ip, 0
    while isinstance(layer, IP | IPv6 | IPv6ExtHdrHopByHop | IPv6ExtHdrDestOpt):
        length += len(layer) - len(layer.payload)
        layer = layer.payload
        if isinstance(layer, NoPayload):
            break
    return length


def geneve_option(data: bytes = b"", kind: int = 0x80) -> bytes:
    """Return one of OVN's options, which are critical."""
    return struct.pack("!HBB", 0x0102, kind, len(data) // 4) + data


def geneve_header(options: bytes = b"", vni: int = VNI, protocol: int = 0x6558) -> bytes:
    """Return a Geneve header by RFC 8926, 3.4, as OVN makes it."""
    critical = 0x40 if options else 0
    return struct.pack("!BBHI", len(options) // 4, critical, protocol, vni << 8) + options


def build(shape: Shape) -> Tunnel:
    """Build a packet of this shape whose checksums are all right."""
    header, content, inner = _frame(shape)
    outer_ip = _ip(shape.version, shape.options, 17, shape.host)
    tunnel = bytes(VXLAN(flags=0x08, vni=shape.vni))
    if shape.geneve is not None:
        tunnel = geneve_header(shape.geneve, shape.vni)
    data = bytes(
        outer_ip
        / UDP(sport=shape.source_port, dport=shape.port)
        / Raw(tunnel + header + content + shape.padding)
    )
    udp = _transport_offset(outer_ip)
    inner_ip = udp + 8 + len(tunnel) + len(header)
    return Tunnel(
        data, udp, inner_ip, inner_ip + _transport_offset(inner), inner_ip + len(content)
    )


def expected_check(tunnel: Tunnel) -> int:
    """Return the outer checksum that scapy computes for the bytes as they are."""
    datagram = tunnel.with_bytes(tunnel.udp + 6, b"\0\0").data[tunnel.udp :]
    if tunnel.data[0] >> 4 == 4:
        computed = in4_chksum(17, IP(tunnel.data[: tunnel.udp]), datagram)
    else:
        computed = in6_chksum(17, IPv6(tunnel.data[:40]), datagram)  # type: ignore[no-untyped-call]
    return computed or 0xFFFF


def partial_check(tunnel: Tunnel, shape: Shape) -> int:
    """Return what CHECKSUM_PARTIAL leaves in the inner field: the folded pseudo-header sum."""
    version = shape.inner_version
    length = tunnel.inner_end - tunnel.inner_l4
    addresses = slice(12, 20) if version == 4 else slice(8, 40)
    header = tunnel.data[tunnel.inner_ip : tunnel.inner_l4][addresses]
    return checksum(header + struct.pack("!HH", protocol_of(shape), length)) ^ 0xFFFF


def outer_partial_check(tunnel: Tunnel) -> int:
    """Return what CHECKSUM_PARTIAL leaves in the outer field: the folded pseudo-header sum."""
    addresses = tunnel.data[12:20] if tunnel.data[0] >> 4 == 4 else tunnel.data[8:40]
    length = tunnel.data[tunnel.udp + 4 : tunnel.udp + 6]
    return checksum(addresses + struct.pack("!H", 17) + length) ^ 0xFFFF


payloads = st.one_of(st.binary(max_size=64), st.binary(min_size=1400, max_size=1500))

vxlan_shapes = st.builds(
    Shape,
    version=st.sampled_from([4, 6]),
    options=st.booleans(),
    host=st.integers(1, 250),
    source_port=st.integers(1, 65535),
    vni=st.integers(0, 2**24 - 1),
    tags=st.integers(0, 2),
    inner_version=st.sampled_from([4, 6]),
    inner_options=st.booleans(),
    transport=st.sampled_from(Transport),
    payload=payloads,
    padding=st.binary(max_size=8),
)
geneve_shapes = st.builds(
    replace,
    vxlan_shapes,
    port=st.just(GENEVE_PORT),
    geneve=st.sampled_from(
        [b"", geneve_option(), geneve_option(bytes(4)) * 2, geneve_option(bytes(120)) * 2]
    ),
)
shapes = vxlan_shapes | geneve_shapes

proven_shapes = shapes.filter(lambda shape: shape.proven)
