"""A second opinion on tunnel packets: what repair() and inspect() must say, by scapy.

Scapy takes headers apart and computes checksums. The decisions are written from the words of
csrc/*.h and the RFCs, not from the C. IPv4 options and IPv6 extension headers are walked by hand,
because scapy guesses where it should complain.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet
from scapy.utils import checksum

from csumfix.core import Inner, Inspection, Outer, Policy, Repair, Status

# IANA's protocol numbers
HOP_BY_HOP, ICMP_NUMBER, TCP_NUMBER, UDP_NUMBER = 0, 1, 6, 17
ROUTING, FRAGMENT, ICMPV6_NUMBER, DESTINATION_OPTIONS = 43, 44, 58, 60
# RFC 791: options without a length, and source routes
END_OF_OPTIONS, NO_OPERATION, SOURCE_ROUTES = 0, 1, {131, 137}
# RFC 8200, RFC 6275
PAD1, HOME_ADDRESS = 0, 0xC9
EXTENSIONS_MAX = 7  # a longer chain is taken for an attack

IPV4, IPV6, VLANS = 0x0800, 0x86DD, {0x8100, 0x88A8}
VLANS_MAX = 2
BRIDGING = 0x6558  # an Ethernet frame, as EtherType
UNKNOWN = 0
BY_NEXT_PROTOCOL = {1: IPV4, 2: IPV6, 3: BRIDGING}  # of VXLAN-GPE

REPAIRED = {"recomputed", "recomputed_unproven", "zero_filled"}

# Where a transport has its checksum field, and the bytes that it has at least.
TRANSPORTS = {TCP_NUMBER: (16, 20), ICMP_NUMBER: (2, 4), ICMPV6_NUMBER: (2, 4)}


class NotIpError(Exception):
    """The bytes are no IP packet."""


class MalformedError(Exception):
    """A header, or what it announces, does not fit into the bytes that are there."""


@dataclass(frozen=True)
class IpPacket:
    """An IP packet without its headers, and what they said."""

    version: int
    protocol: int
    fragment: bool
    rerouted: bool
    header: bytes
    addresses: bytes
    payload: bytes
    payload_at: int  # where it begins

    def pseudo_header(self, length: int) -> bytes:
        """RFC 768 and RFC 8200, 8.1; ICMP over IPv4 has none."""
        if self.protocol == ICMP_NUMBER:
            return b""
        form = "!xBH" if self.version == 4 else "!xBxxI"
        return self.addresses + struct.pack(form, self.protocol, length)


def expected_check(ip: IpPacket, data: bytes, field: int) -> int:
    """Return the transport checksum that belongs at ``field`` of ``data``."""
    zeroed = data[:field] + b"\0\0" + data[field + 2 :]
    return int(checksum(ip.pseudo_header(len(data)) + zeroed))


def partial_check(ip: IpPacket, length: int) -> int | None:
    """Return what CHECKSUM_PARTIAL leaves in the field: the folded sum of the pseudo-header."""
    pseudo = ip.pseudo_header(length)
    return checksum(pseudo) ^ 0xFFFF if pseudo else None


@dataclass(frozen=True)
class Payload:
    """What a tunnel carries, and what the tunnel's header tells of it.

    kind: its EtherType; UNKNOWN if nobody can tell.
    remote_checksum: VXLAN-RCO.
    """

    vni: int
    kind: int
    data: bytes
    remote_checksum: bool = False


@dataclass(frozen=True)
class Tunnelled:
    """A tunnel packet whose outer checksum can be judged."""

    ip: IpPacket
    udp: Packet
    datagram: bytes
    payload: Payload

    @property
    def expected(self) -> int:
        return expected_check(self.ip, self.datagram, 6) or 0xFFFF

    def with_check(self, packet: bytes, check: int) -> bytes:
        """Return the packet with another outer checksum."""
        at = self.ip.payload_at + 6
        return packet[:at] + struct.pack("!H", check) + packet[at + 2 :]


@lru_cache(8192)
def header(layer: type[Packet], data: bytes) -> Packet:
    """Have scapy dissect one header alone; the packet that comes back is shared."""
    packet = layer()
    packet.do_dissect(data)
    return packet


def need(data: bytes, length: int) -> bytes:
    """Return the first bytes, which must be there."""
    if len(data) < length:
        raise MalformedError
    return data[:length]


@lru_cache(4096)
def has_source_route(options: bytes) -> bool:
    """Options that cannot be walked to their end may well hide one."""
    while options and options[0] != END_OF_OPTIONS:
        if options[0] == NO_OPERATION:
            options = options[1:]
            continue
        if len(options) < 2 or options[1] < 2 or options[1] > len(options):
            return True
        if options[0] in SOURCE_ROUTES:
            return True
        options = options[options[1] :]
    return False


def dissect_ipv4(data: bytes) -> IpPacket:
    ip = header(IP, need(data, 20))
    length = ip.ihl * 4
    if length < 20 or ip.len < length:
        raise MalformedError
    whole = need(data, ip.len)
    return IpPacket(
        version=4,
        protocol=ip.proto,
        fragment=bool(ip.flags.MF or ip.frag),
        rerouted=has_source_route(whole[20:length]),
        header=whole[:length],
        addresses=whole[12:20],
        payload=whole[length:],
        payload_at=length,
    )


@lru_cache(4096)
def has_home_address(options: bytes) -> bool:
    """It replaces the source address; options that cannot be walked may well hide one."""
    while options:
        if options[0] == PAD1:
            options = options[1:]
            continue
        if options[0] == HOME_ADDRESS or len(options) < 2 or len(options) < 2 + options[1]:
            return True
        options = options[2 + options[1] :]
    return False


def is_rerouted(kind: int, extension: bytes) -> bool:
    """Whether the header hides an address that the checksum covers."""
    if kind == ROUTING:
        return extension[3] > 0  # segments left
    return kind == DESTINATION_OPTIONS and has_home_address(extension[2:])


def dissect_ipv6(data: bytes) -> IpPacket:
    ip = header(IPv6, need(data, 40))
    payload = need(data[40:], ip.plen)
    protocol, rerouted, walked = ip.nh, False, 0
    while protocol in {HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS}:
        extension = need(payload, 8 + 8 * need(payload, 8)[1])
        payload = payload[len(extension) :]
        rerouted = rerouted or is_rerouted(protocol, extension)
        protocol = extension[0]
        walked += 1
        if walked > EXTENSIONS_MAX:
            raise MalformedError
    return IpPacket(
        version=6,
        protocol=protocol,
        fragment=protocol == FRAGMENT,  # be it the only one
        rerouted=rerouted,
        header=data[:40],
        addresses=data[8:40],
        payload=payload,
        payload_at=40 + ip.plen - len(payload),
    )


def dissect_ip(data: bytes) -> IpPacket:
    if not data or data[0] >> 4 not in {4, 6}:
        raise NotIpError
    return dissect_ipv4(data) if data[0] >> 4 == 4 else dissect_ipv6(data)


def dissect_udp(payload: bytes) -> tuple[Packet, bytes]:
    """Return the header and the datagram, which may be shorter than what IP carried."""
    udp = header(UDP, need(payload, 8))
    if udp.len < 8:
        raise MalformedError
    return udp, need(payload, udp.len)


def outer_ip(packet: bytes) -> IpPacket | Status:
    try:
        ip = dissect_ip(packet)
    except NotIpError:
        return Status.NOT_IP
    except MalformedError:
        return Status.MALFORMED_IP
    if ip.fragment:
        return Status.FRAGMENT
    if ip.protocol != UDP_NUMBER:
        return Status.NOT_UDP
    return Status.REROUTED if ip.rerouted else ip


def vxlan_payload(data: bytes) -> Payload:
    """Raise MalformedError if the data is no VXLAN packet."""
    # Scapy reads the bytes of a group policy and of a next protocol one behind the other, but
    # they share a place: without the bit of the former, it finds the VNI.
    vxlan = header(VXLAN, bytes([need(data, 8)[0] & 0x7F]) + data[1:8])
    if not vxlan.flags.Instance:
        raise MalformedError
    group, gpe, remote = data[0] & 0x80, vxlan.flags.NextProtocol, data[1] & 0x20
    reserved = [data[0] & 0x73, data[1] & 0xDF, data[2], data[3], data[7]]
    if group:  # a group's number, and two flags, need no check
        reserved[1:4] = [0, 0, gpe]
    elif gpe:
        reserved[3] = 0
    if remote:
        reserved[4] = 0
    kind = BY_NEXT_PROTOCOL.get(vxlan.NextProtocol, UNKNOWN) if gpe else BRIDGING
    return Payload(vxlan.vni, UNKNOWN if any(reserved) else kind, data[8:], bool(remote))


def geneve_payload(data: bytes) -> Payload:
    """Raise MalformedError if the data is no Geneve packet."""
    geneve = header(GENEVE, need(data, 8)[:1] + data[1:8])
    if geneve.version != 0:
        raise MalformedError
    end = 8 + 4 * (data[0] & 0x3F)
    options = need(data, end)[8:]
    while options:
        length = 4 + 4 * (need(options, 4)[3] & 0x1F)
        options = options[len(need(options, length)) :]
    known = {BRIDGING, IPV4, IPV6} if not geneve.oam else set()
    return Payload(geneve.vni, geneve.proto if geneve.proto in known else UNKNOWN, data[end:])


def dissect(packet: bytes, policy: Policy) -> Tunnelled | Status:
    """Return the packet taken apart, or why its outer checksum cannot be judged."""
    ip = outer_ip(packet)
    if isinstance(ip, Status):
        return ip
    try:
        udp, datagram = dissect_udp(ip.payload)
    except MalformedError:
        return Status.MALFORMED_UDP
    if policy.ports and udp.dport not in policy.ports:
        return Status.OTHER_PORT
    is_geneve = udp.dport in policy.geneve
    try:
        payload = geneve_payload(datagram[8:]) if is_geneve else vxlan_payload(datagram[8:])
    except MalformedError:
        return Status.NOT_GENEVE if is_geneve else Status.NOT_VXLAN
    return Tunnelled(ip, udp, datagram, payload)


@dataclass(frozen=True)
class InnerOpinion:
    """The inner packet, and the checksum that was computed for it, if any."""

    state: Inner
    found: int = 0
    expected: int = 0


UNPROVEN, MALFORMED = InnerOpinion(Inner.UNPROVEN), InnerOpinion(Inner.MALFORMED)


def inner_bytes(payload: Payload) -> tuple[int, bytes]:
    """Return the EtherType of what a tunnel carries, and the bytes behind it."""
    kind, inner = payload.kind, payload.data
    if kind != BRIDGING:
        return kind, inner
    kind, inner = header(Ether, need(inner, 14)).type, inner[14:]
    for _ in range(VLANS_MAX):
        if kind in VLANS:
            kind, inner = header(Dot1Q, need(inner, 4)).type, inner[4:]
    return kind, inner


def judge_transport(ip: IpPacket, data: bytes, field: int) -> InnerOpinion:
    """Compare the checksum at ``field`` with what it should be."""
    found = int.from_bytes(data[field : field + 2], "big")
    expected = expected_check(ip, data, field)
    if ip.protocol == UDP_NUMBER:
        expected = expected or 0xFFFF
    if not checksum(ip.pseudo_header(len(data)) + data):
        state = Inner.RIGHT
    elif found == partial_check(ip, len(data)):
        state = Inner.PARTIAL
    else:
        state = Inner.CORRUPT
    return InnerOpinion(state, found, expected)


def judge_udp(ip: IpPacket) -> InnerOpinion:
    udp, datagram = dissect_udp(ip.payload)
    return judge_transport(ip, datagram, 6) if udp.chksum else UNPROVEN


def judge_inner_ip(data: bytes) -> InnerOpinion:
    ip = dissect_ip(data)
    if ip.version == 4 and checksum(ip.header):
        return InnerOpinion(Inner.CORRUPT)
    foreign = {4: ICMPV6_NUMBER, 6: ICMP_NUMBER}[ip.version]
    if ip.fragment or ip.rerouted or ip.protocol == foreign:
        return UNPROVEN
    if ip.protocol == UDP_NUMBER:
        return judge_udp(ip)
    if ip.protocol not in TRANSPORTS:
        return UNPROVEN
    field, least = TRANSPORTS[ip.protocol]
    need(ip.payload, least)
    return judge_transport(ip, ip.payload, field)


def judge_inner(tunnelled: Tunnelled) -> InnerOpinion:
    """What the inner packet's own checksums say about it."""
    payload = tunnelled.payload
    if payload.kind == UNKNOWN:
        return InnerOpinion(Inner.UNKNOWN)
    if payload.remote_checksum:
        return UNPROVEN
    try:
        kind, inner = inner_bytes(payload)
        return judge_inner_ip(inner) if kind in {IPV4, IPV6} else UNPROVEN
    except (MalformedError, NotIpError):
        return MALFORMED


def finally_expected(tunnelled: Tunnelled, inner: InnerOpinion) -> int:
    """Return the outer checksum that is right once a partial inner one has been computed.

    Adding its complement takes a word out of the sum (RFC 1624); where it stands does not matter.
    """
    if inner.state is not Inner.PARTIAL:
        return tunnelled.expected
    datagram = tunnelled.datagram + bytes(len(tunnelled.datagram) % 2)
    exchange = struct.pack("!HH", inner.found ^ 0xFFFF, inner.expected)
    pseudo = tunnelled.ip.pseudo_header(len(tunnelled.datagram))
    return int(checksum(pseudo + datagram[:6] + b"\0\0" + datagram[8:] + exchange)) or 0xFFFF


def judge_outer(tunnelled: Tunnelled, inner: InnerOpinion) -> Outer:
    found = tunnelled.udp.chksum
    if not found:
        return Outer.ZERO
    if found == tunnelled.expected:
        return Outer.RIGHT
    if found == partial_check(tunnelled.ip, len(tunnelled.datagram)):
        return Outer.PARTIAL
    return Outer.LCO if found == finally_expected(tunnelled, inner) else Outer.WRONG


def inspect(tunnelled: Tunnelled | Status) -> Inspection:
    """What core.inspect() must say."""
    if isinstance(tunnelled, Status):
        return Inspection(tunnelled)
    found, inner = tunnelled.udp.chksum, judge_inner(tunnelled)
    outer = judge_outer(tunnelled, inner)
    off = (found - finally_expected(tunnelled, inner)) % 0xFFFF
    return Inspection(
        status=Status.OK,
        outer=outer,
        found=found,
        expected=tunnelled.expected,
        difference=off if outer is Outer.WRONG else 0,
        source=tunnelled.udp.sport,
        dest=tunnelled.udp.dport,
        vni=tunnelled.payload.vni,
        inner=inner.state,
        inner_found=inner.found,
        inner_expected=inner.expected,
    )


def reason_of(seen: Inspection, fill_zero: bool) -> str:
    """What repair() makes of a packet that inspect() sees so."""
    zero = seen.outer is Outer.ZERO
    if seen.status is not Status.OK:
        return seen.status.name.lower()
    if seen.outer is Outer.RIGHT:
        return "right"
    if zero and (not fill_zero or seen.inner is Inner.UNKNOWN):  # 0 is legal, whatever it covers
        return "zero_kept"
    if seen.inner not in {Inner.RIGHT, Inner.UNPROVEN}:
        return f"inner_{seen.inner.name.lower()}"
    if zero:
        return "zero_filled"
    return "recomputed" if seen.inner is Inner.RIGHT else "recomputed_unproven"


@dataclass(frozen=True)
class Opinion:
    """What the core must say about one packet."""

    repair: Repair
    inspection: Inspection


def judge(
    packet: bytes, policy: Policy, wirelen: int, *, partial: bool, replaceable: bool
) -> Opinion:
    """Return what core.repair() and core.inspect() must say."""
    tunnelled = dissect(packet, policy)
    seen = inspect(tunnelled)
    reason = reason_of(seen, policy.fill_zero)
    if wirelen > len(packet):
        reason = "truncated"
    elif not replaceable:
        reason = "no_headroom"
    elif partial:
        reason = "partial"
    elif isinstance(tunnelled, Tunnelled) and reason in REPAIRED:
        packet = tunnelled.with_check(packet, seen.expected)
    return Opinion(Repair(reason, packet), seen)
