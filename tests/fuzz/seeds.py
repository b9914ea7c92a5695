"""Writes the seeds of the fuzz targets: python -m tests.fuzz.seeds DIRECTORY.

scapy builds packets in every shape of tests/packets.py: right, wrong and partial. The netlink
messages hold such packets as the kernel sends them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from scapy.layers.inet import IP, UDP, IPOption_LSRR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.packet import Raw

from tests.packets import (
    CHECK_OFFSET,
    GENEVE_PORT,
    PORT,
    Shape,
    Transport,
    Tunnel,
    build,
    expected_check,
    geneve_header,
    geneve_option,
    outer_partial_check,
    partial_check,
)

# linux/netfilter/nfnetlink_queue.h, linux/netlink.h
PACKET, VERDICT, CONFIG, NOOP, ERROR, DONE = 0x300, 0x301, 0x302, 1, 2, 3
PACKET_HDR, MARK, OUTDEV, PAYLOAD, CAP_LEN, SKB_INFO = 1, 3, 6, 10, 13, 14
CHECKSUM_NOT_READY, GSO = 1, 2

# The options byte of fuzz_repair.c.
FILL_ZERO, PARTIAL, CUT, BOTH_PORTS = 0x01, 0x02, 0x04, 0x08


def shapes() -> Iterator[Shape]:
    """Yield one of each kind of packet."""
    for version, inner, transport in product((4, 6), (4, 6), Transport):
        yield Shape(version=version, inner_version=inner, transport=transport)
    for version in (4, 6):
        yield Shape(version=version, options=True, tags=1, inner_options=True)
        yield Shape(version=version, inner_version=6, tags=2, inner_options=True, padding=b"\0\0")
        yield Shape(version=version, payload=bytes(700))
    for options in (b"", geneve_option(bytes(4)), geneve_option() + geneve_option(bytes(32))):
        yield Shape(port=GENEVE_PORT, geneve=options)
        yield Shape(version=6, port=GENEVE_PORT, transport=Transport.TCP, geneve=options, tags=1)


def odd_packets() -> Iterator[bytes]:
    """Yield packets that repair() does not judge, or judges by a special rule."""
    vxlan = b"\x08" + bytes(7)
    udp = UDP(dport=PORT) / Raw(vxlan)
    yield bytes(IP(flags="MF") / udp)
    yield bytes(IP(options=[IPOption_LSRR(routers=["10.0.0.1"])]) / udp)
    yield bytes(IPv6() / IPv6ExtHdrFragment() / udp)
    yield bytes(IPv6() / IPv6ExtHdrRouting(addresses=["::1"], segleft=1) / udp)
    yield bytes(IP() / UDP(dport=PORT, len=7) / Raw(vxlan))
    yield build(Shape(port=4789)).data
    right = build(Shape())
    yield right.with_bytes(right.udp + 8, b"\0").data  # no VNI
    yield right.with_bytes(right.udp + 9, b"\x20").data  # VXLAN-RCO
    for bits in (b"\x88\x48\0\1", b"\x1c\0\0\3", b"\x0c\0\0\4", b"\x8c\0\0\3"):
        yield right.with_bytes(right.udp + 8, bits).data  # group policy, GPE's version, NSH, both
    geneve = build(Shape(port=GENEVE_PORT, geneve=geneve_option(bytes(4))))
    yield geneve.with_bytes(geneve.udp + 8, b"\x42").data  # of another version
    yield geneve.with_bytes(geneve.udp + 9, b"\xc0").data  # a control message
    yield geneve.with_bytes(geneve.udp + 19, b"\x02").data  # an option that is too long
    bare = Raw(geneve_header(protocol=0x800)) / IP() / UDP()
    yield bytes(IP() / UDP(dport=GENEVE_PORT) / bare / b"no Ethernet")
    yield bytes(IP() / UDP(dport=PORT) / Raw(b"\x0c\0\0\1" + bytes(4)) / IP() / UDP() / b"gpe")
    yield bytes(IP() / UDP(dport=PORT) / Raw(b"\x0c\0\0\2" + bytes(4)) / IPv6() / UDP() / b"gpe")


def offloaded(right: Tunnel, shape: Shape) -> Iterator[bytes]:
    """Yield the packet with a partial inner checksum: one outer checksum is wrong, two are not."""
    field = right.inner_l4 + CHECK_OFFSET[shape.transport]
    partial = right.with_bytes(field, struct.pack("!H", partial_check(right, shape)))
    yield partial.with_check(expected_check(partial) ^ 0x5555)
    yield partial.data  # local checksum offload
    yield partial.with_check(outer_partial_check(partial))  # as GSO packets have it


def repair_inputs() -> Iterator[bytes]:
    """Yield inputs of fuzz_repair."""
    for shape in shapes():
        right = build(shape)
        yield bytes([0]) + right.data
        yield bytes([BOTH_PORTS]) + right.with_check(right.check ^ 0x5555)
        yield bytes([FILL_ZERO]) + right.with_check(0)
        corrupt = right.with_bytes(right.inner_end - 1, b"\xee").with_check(right.check ^ 0x1234)
        yield bytes([FILL_ZERO]) + corrupt
        if shape.proven:
            yield from (bytes([0]) + packet for packet in offloaded(right, shape))
    for packet in odd_packets():
        yield bytes([BOTH_PORTS]) + packet
    for option in (CUT, PARTIAL):
        yield bytes([option]) + build(Shape()).with_check(1)


def attribute(kind: int, content: bytes) -> bytes:
    """Return a netlink attribute, padded."""
    padding = bytes(-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + content + padding


def message(kind: int, content: bytes) -> bytes:
    """Return a netlink message."""
    return struct.pack("=IHHII", 16 + len(content), kind, 0, 0, 0) + content


def packet_header(number: int) -> bytes:
    """Return the attribute with the id of a queued packet."""
    return attribute(PACKET_HDR, struct.pack("!IHB", number, 0x0800, 4))


def packet_message(*attributes: bytes) -> bytes:
    """Return a message about a queued packet."""
    return message(PACKET, struct.pack("!BBH", 2, 0, 7) + b"".join(attributes))


def packet(number: int, payload: bytes, *more: bytes) -> bytes:
    """Return the message that brings a queued packet, as the kernel builds it."""
    device = attribute(OUTDEV, struct.pack("!I", 2))
    mark = attribute(MARK, struct.pack("!I", 0x4000))
    return packet_message(packet_header(number), device, mark, *more, attribute(PAYLOAD, payload))


def status(request: int, error: int) -> bytes:
    """Return the kernel's answer to a request."""
    return message(ERROR, struct.pack("=i", error) + message(request, b""))


def datagrams() -> Iterator[bytes]:
    """Yield inputs of fuzz_nfqmsg and fuzz_drain."""
    right = build(Shape())
    wrong = right.with_check(right.check ^ 0x5555)
    corrupt = right.with_bytes(right.inner_end - 1, b"\xee").with_check(1)
    longer = build(replace(Shape(), version=6, inner_version=6, payload=bytes(300)))
    yield packet(1, right.data)
    yield packet(1, wrong)
    yield packet(1, longer.data)
    yield packet(1, wrong, attribute(SKB_INFO, struct.pack("!I", CHECKSUM_NOT_READY)))
    yield packet(1, wrong, attribute(SKB_INFO, struct.pack("!I", GSO)))
    yield packet(1, wrong, attribute(CAP_LEN, struct.pack("!I", len(wrong) + 1)))
    yield packet(1, b"") + packet(2, b"x") + packet(3, b"xy") + packet(4, b"xyz")
    yield packet(1, right.data) + packet(2, wrong) + packet(3, wrong) + packet(4, corrupt)
    yield packet_message(attribute(PAYLOAD, wrong))  # without an id
    yield packet_message(attribute(PAYLOAD, wrong), packet_header(1))  # no room for a verdict
    yield status(VERDICT, 0) + status(VERDICT, -2) + packet(1, wrong) + status(CONFIG, 0)
    yield packet(1, right.data) + status(NOOP, 0) + packet(2, wrong) + status(NOOP, 0)
    yield message(DONE, b"") + packet(1, wrong) + message(PACKET, b"")


def write(directory: Path, inputs: Iterator[bytes]) -> None:
    """Write each input to its own file."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (directory / f"seed{number:03}").write_bytes(data)


if __name__ == "__main__":
    top = Path(sys.argv[1])
    write(top / "repair", repair_inputs())
    write(top / "nfqmsg", datagrams())
    write(top / "drain", datagrams())
