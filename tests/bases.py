"""The tunnel packets that tests/generate.py damages, as scapy builds them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (
    HAO,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packets import (
    CHECK_OFFSET,
    GENEVE_PORT,
    PORT,
    Shape,
    Transport,
    Tunnel,
    build,
    geneve_header,
    geneve_option,
    partial_check,
)

PAYLOADS = (b"", b"x", b"payload", bytes(range(250)), b"\xa5\x5a" * 350)
JUMBO = bytes(range(251)) * 32

# VXLAN headers: plain; remote checksum offload, group policy, reserved flags; next protocols.
PLAIN = b"\x08" + bytes(7)
VXLAN_HEADERS = [
    flags + b"\0\0\7\0"
    for flags in (b"\x08\x20\0\0", b"\x88\0\0\1", b"\x8c\0\0\3", b"\xfb\xdf\xff\xff")
]
# Geneve's options: none, OVN's, several, and as many as there is room for.
GENEVE_OPTIONS = (
    b"",
    geneve_option(bytes(4)),
    geneve_option() + geneve_option(b"1234" * 8, kind=0),
    geneve_option(bytes(124)) + geneve_option(bytes(120)),
)
GPE_HEADERS = [bytes([0x0C, 0, 0, protocol, 0, 0, 7, 0]) for protocol in range(5)]


def plain_bases() -> Iterator[Tunnel]:
    """Every shape that tests/packets.py knows."""
    flags = (False, True)
    shapes = product((4, 6), flags, (0, 1, 2), (4, 6), flags, Transport)
    for number, (version, options, tags, inner, inner_options, transport) in enumerate(shapes):
        shape = Shape(
            version=version,
            options=options,
            tags=tags,
            inner_version=inner,
            inner_options=inner_options,
            transport=transport,
            payload=PAYLOADS[number % len(PAYLOADS)],
            padding=bytes(number % 3),
        )
        geneve = GENEVE_OPTIONS[number % len(GENEVE_OPTIONS)]
        for one in (shape, replace(shape, port=GENEVE_PORT, geneve=geneve)):
            yield build(one)
            if shape.proven and (transport is not Transport.ICMP or inner == 6):
                yield _partial(one)
    yield build(Shape(payload=JUMBO))
    yield build(Shape(version=6, inner_version=6, transport=Transport.TCP, payload=JUMBO))


def _partial(shape: Shape) -> Tunnel:
    right = build(shape)
    field = right.inner_l4 + CHECK_OFFSET[shape.transport]
    return right.with_bytes(field, struct.pack("!H", partial_check(right, shape)))


def ip_headers() -> list[Packet]:
    """Headers that tests/packets.py has no shapes for."""
    six = IPv6(src="fd00::1", dst="fd00::2")
    padding = [PadN(optdata=b"\0" * 4)]
    options = [
        [IPOption_LSRR(routers=["10.0.0.9"])],
        [IPOption_NOP(), IPOption_SSRR(routers=["10.0.0.9", "10.0.0.8"])],
        [IPOption_RR(routers=["10.0.0.9"])],
        [IPOption_NOP()] * 40,
    ]
    chains: list[Packet] = [six]
    for _ in range(8):
        chains.append(chains[-1] / IPv6ExtHdrDestOpt(options=padding))
    return [
        *[IP(src="10.0.0.1", dst="10.0.0.2", options=some) for some in options],
        *[IP(flags=flags, frag=frag) for flags, frag in (("DF", 0), ("MF", 0), (0, 9))],
        *chains[1:],
        six / IPv6ExtHdrRouting(addresses=["fd00::9"], segleft=1),
        six / IPv6ExtHdrRouting(addresses=["fd00::9"], segleft=0),
        six / IPv6ExtHdrHopByHop(options=padding) / IPv6ExtHdrFragment(m=1),
        six / IPv6ExtHdrFragment(m=0, offset=7),
        six / IPv6ExtHdrFragment(),
        six / IPv6ExtHdrDestOpt(options=[HAO()]),
        six / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"12"), HAO(hoa="fd00::7")]),
    ]


def odd_bases() -> Iterator[Tunnel]:
    """Odd headers outside and inside, and what else VXLAN can carry."""
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    tagged = ether / Dot1AD() / Dot1Q()
    four, six = IP(src="10.1.0.1", dst="10.1.0.2"), IPv6(src="fd01::1", dst="fd01::2")
    udp, tcp = UDP(sport=7, dport=9) / Raw(b"inner"), TCP() / Raw(b"inner")
    ping, ping6 = ICMP() / Raw(b"ping"), ICMPv6EchoRequest(data=b"ping")
    for header in ip_headers():
        yield compose(header, PLAIN, ether, four, ping)
        yield compose(four, PLAIN, ether, header, udp)
        yield compose(six, PLAIN, tagged, header, tcp)
    for vxlan in VXLAN_HEADERS:
        yield compose(four, vxlan, ether, four, ping)
        yield compose(six, vxlan, ether, six, ping6)
    for vxlan in GPE_HEADERS:
        yield compose(six, vxlan, None, four, tcp)
        yield compose(four, vxlan, None, six, udp)
    for protocol, frame, inside in ((0x800, None, four), (0x86DD, None, six), (0x8847, None, six)):
        geneve = geneve_header(geneve_option(), protocol=protocol)
        yield compose(four, geneve, frame, inside, udp, GENEVE_PORT)
    control = bytearray(geneve_header())
    control[1] |= 0x80
    yield compose(six, bytes(control), ether, four, tcp, GENEVE_PORT)
    yield compose(four, PLAIN, tagged / Dot1Q(), four, ping)
    yield compose(four, PLAIN, ether, IP(proto=58), ICMPv6EchoRequest(cksum=1))
    yield compose(four, PLAIN, ether, IPv6(nh=1), ping)


def compose(
    outside: Packet,
    tunnel: bytes,
    frame: Packet | None,
    inside: Packet,
    transport: Packet,
    port: int = PORT,
) -> Tunnel:
    """Put a tunnel packet together from its layers."""
    content = bytes(inside / transport)
    carried = bytes(frame / inside / transport) if frame else content
    datagram = UDP(sport=40000, dport=port) / Raw(tunnel + carried)
    data = bytes(outside / datagram)
    inner_ip = len(data) - len(content)
    return Tunnel(data, len(data) - len(datagram), inner_ip, inner_ip + len(inside), len(data))
