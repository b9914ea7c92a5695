"""The packet filter of the egress tap, run as the kernel would run it."""

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from csumfix.evidence.tapsocket import (
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_HALF_X,
    LOAD_X,
    LOAD_X_HEADER_LENGTH,
    PACKET_OUTGOING,
    PACKET_TYPE,
    PORTS_IN_FILTER,
    RETURN,
    SHIFT_RIGHT,
    Direction,
    Instruction,
    program,
)

JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, JUMP_SET = 0x05, 0x15, 0x25, 0x35, 0x45
PACKET_HOST = 0


def accepts(code: list[Instruction], packet: bytes, packet_type: int) -> bool:
    """Interpret classic BPF (linux/filter.h); what lies behind the packet rejects it."""
    a = x = at = 0
    while True:
        kind, if_true, if_false, k = code[at]
        at += 1
        if kind == RETURN:
            return k > 0
        if kind == LOAD_BYTE and k == PACKET_TYPE:
            a = packet_type
        elif kind in (LOAD_BYTE, LOAD_HALF, LOAD_HALF_X):
            start, size = k + (x if kind == LOAD_HALF_X else 0), 1 if kind == LOAD_BYTE else 2
            if start + size > len(packet):
                return False
            a = int.from_bytes(packet[start : start + size], "big")
        elif kind == LOAD_X:
            x = k
        elif kind == LOAD_X_HEADER_LENGTH:
            x = 4 * (packet[k] & 0xF)
        elif kind == SHIFT_RIGHT:
            a >>= k
        elif kind == JUMP:
            at += k
        else:
            hits = {
                JUMP_EQUAL: a == k,
                JUMP_GREATER: a > k,
                JUMP_GREATER_EQUAL: a >= k,
                JUMP_SET: bool(a & k),
            }
            at += if_true if hits[kind] else if_false


PORTS = (4789, 8472)
TUNNEL = [
    IP() / UDP(dport=8472),
    IPv6() / UDP(dport=4789),
    IP(options=b"\x01" * 8) / UDP(dport=8472),
]
OTHER = [
    IP() / UDP(dport=53),
    IPv6() / UDP(dport=53),
    IP() / TCP(dport=8472),
    IPv6() / TCP(dport=8472),
    IP(frag=9) / UDP(dport=8472),
    IP(flags="MF") / UDP(dport=8472),
]


@pytest.mark.parametrize("packet", TUNNEL, ids=lambda packet: packet.summary())
def test_tunnel_packets_pass_in_their_direction(packet: Packet) -> None:
    data = bytes(packet)
    assert accepts(program(PORTS, Direction.OUT), data, PACKET_OUTGOING)
    assert not accepts(program(PORTS, Direction.OUT), data, PACKET_HOST)
    assert accepts(program(PORTS, Direction.IN), data, PACKET_HOST)
    assert not accepts(program(PORTS, Direction.IN), data, PACKET_OUTGOING)


@pytest.mark.parametrize("packet", OTHER, ids=lambda packet: packet.summary())
def test_other_packets_do_not(packet: Packet) -> None:
    assert not accepts(program(PORTS, Direction.OUT), bytes(packet), PACKET_OUTGOING)


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" * 41, bytes(IP() / UDP(dport=8472))[:21]])
def test_short_packets_do_not(data: bytes) -> None:
    assert not accepts(program(PORTS, Direction.OUT), data, PACKET_OUTGOING)


@pytest.mark.parametrize("number", [1, PORTS_IN_FILTER, PORTS_IN_FILTER + 1])
def test_any_number_of_ports(number: int) -> None:
    ports = range(5000, 5000 + number)
    code = program(ports, Direction.OUT)
    assert max(max(if_true, if_false) for _, if_true, if_false, _ in code) <= 255
    for port in (ports[0], ports[-1]):
        assert accepts(code, bytes(IP() / UDP(dport=port)), PACKET_OUTGOING)
    # Beyond that many the filter lets all UDP pass, and the core looks at the port.
    passes = accepts(code, bytes(IP() / UDP(dport=53)), PACKET_OUTGOING)
    assert passes is (number > PORTS_IN_FILTER)
