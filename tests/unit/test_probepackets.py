"""The packets of probes: scapy reads what we write, and we recognise what answers them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from csumfix.core import Inner, Outer, Policy, checksum, inspect
from csumfix.evidence.probepackets import (
    NUMBERS,
    VNET,
    Ends,
    Seen,
    answer,
    data,
    datagram,
    echo,
    echo_data,
    encapsulated,
    question,
    syn,
)
from csumfix.evidence.segments import inner_offset
from csumfix.evidence.tapsocket import PACKET_OUTGOING, Direction, answers_in, program
from csumfix.protocols import Protocol
from tests.packets import GENEVE_PORT, Shape, build, geneve_option
from tests.unit.test_tapsocket import PACKET_HOST, accepts

HERE = {4: "10.244.0.0", 6: "fd00:10:244::f"}
THERE = {4: "10.244.1.0", 6: "fd00:10:244:1::f"}
NUMBER = NUMBERS[4]
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
IPS = {4: IP, 6: IPv6}


def ends(version: int) -> Ends:
    here, there = ip_address(HERE[version]).packed, ip_address(THERE[version]).packed
    return Ends(b"\x02\x00\x0a\xf4\x00\x00", b"\x02\x00\x0a\xf4\x01\x00", here, there)


def frames(version: int, *, complete: bool) -> list[bytes]:
    return [
        syn(ends(version), (40000, NUMBER), 0xFEDCBA98, complete=complete),
        echo(ends(version), NUMBER, 0x1234, 56, complete=complete),
        *([data(ends(version), (40000, NUMBER), 77, gso=False)] if complete else []),
    ]


def completed(packet: Packet) -> bytes:
    """What scapy makes of the same packet with its own checksums."""
    again = packet.copy()
    for layer in (IP, TCP, UDP, ICMP, ICMPv6EchoRequest):
        if again.haslayer(layer):
            del again[layer].fields["cksum" if layer is ICMPv6EchoRequest else "chksum"]
    return bytes(again)


@VERSIONS
def test_complete_frames_are_as_scapy_makes_them(version: int) -> None:
    for frame in frames(version, complete=True):
        assert frame[: VNET.size] == bytes(VNET.size)
        packet = Ether(frame[VNET.size :])
        assert completed(packet) == bytes(packet)


@VERSIONS
def test_offloaded_frames_are_completed_as_their_header_says(version: int) -> None:
    for frame, wanted in zip(
        frames(version, complete=False), frames(version, complete=True), strict=False
    ):
        flags, _, _, _, start, offset = VNET.unpack_from(frame)
        assert flags == 1
        raw = frame[VNET.size :]
        value = checksum(raw[start:]) ^ 0xFFFF
        at = start + offset
        assert raw[:at] + value.to_bytes(2) + raw[at + 2 :] == wanted[VNET.size :]


@VERSIONS
def test_a_syn_is_what_the_documentation_says(version: int) -> None:
    packet = Ether(frames(version, complete=True)[0][VNET.size :])
    assert (packet[TCP].flags, packet[TCP].options, packet[TCP].window) == ("S", [], 1024)
    assert len(packet) == 14 + {4: 20, 6: 40}[version] + 20


@VERSIONS
def test_a_gso_packet_is_two_segments(version: int) -> None:
    frame = data(ends(version), (40000, NUMBER), 77, gso=True)
    flags, kind, headers, size, _, _ = VNET.unpack_from(frame)
    assert (flags, kind) == (1, {4: 1, 6: 4}[version])
    assert len(frame) == VNET.size + headers + 2 * size
    assert question(frame[VNET.size + 14 :]) == Seen(NUMBER, ends(version).dest, 77)


@VERSIONS
def test_a_long_echo_fills_the_mtu(version: int) -> None:
    frame = echo(ends(version), NUMBER, 1, echo_data(version, 1450), complete=True)
    assert len(frame) == VNET.size + 14 + 1450


@pytest.mark.parametrize(("protocol", "port"), [("vxlan", 8472), ("geneve", 6081)])
@pytest.mark.parametrize("outer", [4, 6])
@VERSIONS
def test_our_own_datagrams_are_right_outside_and_inside(
    version: int, outer: int, protocol: Protocol, port: int
) -> None:
    source, dest = ("192.0.2.1", "192.0.2.2") if outer == 4 else ("2001:db8::1", "2001:db8::2")
    for frame in frames(version, complete=True):
        payload = encapsulated(protocol, 7, frame)
        packed = ip_address(source).packed, ip_address(dest).packed
        udp = datagram(*packed, (50000, port), payload)
        header = IPS[outer](src=source, dst=dest)
        header.setfieldval("proto" if outer == 4 else "nh", 17)
        packet = bytes(header / udp)
        seen = inspect(packet, Policy.of({port: protocol}))
        assert (seen.outer, seen.vni, seen.source) == (Outer.RIGHT, 7, 50000)
        assert seen.inner in (Inner.RIGHT, Inner.UNPROVEN)
        assert (VXLAN if protocol == "vxlan" else GENEVE)(payload).vni == 7
        found = question(packet[inner_offset(packet, protocol) + 14 :])
        assert found
        assert (found.number, found.remote) == (NUMBER, ends(version).dest)
        for direction, kind in ((Direction.OUT, PACKET_OUTGOING), (Direction.IN, PACKET_HOST)):
            assert accepts(program((port,), direction, NUMBERS), packet, kind)


@VERSIONS
def test_probes_are_seen_behind_the_option_of_ovn(version: int) -> None:
    shape = Shape(port=GENEVE_PORT, inner_version=version, geneve=geneve_option(bytes(4)))
    inner = IPS[version](src=HERE[version], dst=THERE[version]) / TCP(dport=NUMBER, flags="S")
    outer = build(shape)
    packet = outer.data[: outer.inner_ip] + bytes(inner)
    assert accepts(program((GENEVE_PORT,), Direction.OUT, NUMBERS), packet, PACKET_OUTGOING)
    assert question(packet[inner_offset(packet, "geneve") + 14 :])


def answers(version: int) -> list[tuple[Packet, int]]:
    ip = IPS[version](src=THERE[version], dst=HERE[version])
    reply = ICMP(type=0, id=NUMBER, seq=9) if version == 4 else ICMPv6EchoReply(id=NUMBER, seq=9)
    return [
        (ip / TCP(sport=NUMBER, dport=40000, flags="RA", ack=10), 9),
        (ip / TCP(sport=NUMBER, dport=40000, flags="SA", ack=0), 0xFFFFFFFF),
        (ip / TCP(sport=NUMBER, dport=40000, flags="R", seq=77), 77),
        (ip / reply, 9),
    ]


@VERSIONS
def test_answers_are_recognised(version: int) -> None:
    for packet, token in answers(version):
        raw = bytes(packet)
        assert answer(raw) == Seen(NUMBER, ends(version).dest, token)
        assert question(raw) is None
        assert accepts(answers_in(NUMBERS), raw, PACKET_HOST)


@VERSIONS
def test_other_packets_are_not(version: int) -> None:
    ip = IPS[version](src=THERE[version], dst=HERE[version])
    for packet in (
        ip / TCP(sport=443, dport=40000, flags="SA"),
        ip / UDP(sport=53, dport=40000),
        ip / (ICMP(type=0, id=3) if version == 4 else ICMPv6EchoReply(id=3)),
        ip / (ICMP(type=3, id=NUMBER) if version == 4 else ICMPv6EchoRequest(id=NUMBER)),
        ip / TCP(sport=NUMBER, dport=40000, flags="A"),
    ):
        assert answer(bytes(packet)) is None


def test_no_bytes_of_a_pod_upset_it() -> None:
    for packet in (b"", b"\x45", b"\x60" * 41, b"\x4f" * 20, bytes(100), b"\xff" * 60):
        assert question(packet) is None
        assert answer(packet) is None
