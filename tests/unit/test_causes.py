"""From judged packets to causes. What the lab's kernel does to checksums is imitated here."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from csumfix.core import checksum
from csumfix.evidence import causes
from csumfix.evidence.arrivals import Diagnosis
from csumfix.evidence.captures import Captured, Examiner, Judged
from csumfix.evidence.causes import PacketCause, Tally
from csumfix.evidence.tapsocket import Direction
from tests.packets import PORT, Shape, Tunnel, build

OLD_PORTS = [40000, 33333, 60999, 50123]


def packet(old_port: int, payload: bytes = b"payload", host: int = 1) -> Tunnel:
    return build(Shape(source_port=old_port, payload=payload, host=host))


def snat(tunnel: Tunnel, new_port: int) -> bytes:
    """Write another source port, and leave the checksum as it was."""
    return tunnel.with_bytes(tunnel.udp, struct.pack("!H", new_port)).data


def dnat(tunnel: Tunnel, new: str) -> bytes:
    """Write another destination, and move the checksum the wrong way."""
    packed = ip_address(new).packed
    change = checksum(packed) - checksum(tunnel.data[16:20])
    # From right for the old address to right for the new one is minus the change.
    check = (tunnel.check + change) % 0xFFFF or 0xFFFF
    return tunnel.with_bytes(16, packed).with_check(check)


def judged(data: bytes, number: int = 1, direction: Direction | None = None) -> Judged:
    found = Examiner({PORT: "vxlan"}).examine(Captured(number, direction, data, len(data)))
    assert found
    return found


def tally(*packets: bytes) -> Tally:
    result = Tally()
    for number, data in enumerate(packets, start=1):
        result.add(judged(data, number))
    return result


def cause(*packets: bytes) -> PacketCause:
    (finding,) = tally(*packets).findings()
    assert finding.diagnosis is Diagnosis.REWRITTEN
    assert finding.packets == len(packets)
    return finding.cause


def test_new_ports() -> None:
    packets = [snat(packet(old), new) for new, old in enumerate(OLD_PORTS, start=2000)]
    assert cause(*packets) is PacketCause.NEW_PORT


def test_one_flow_cannot_tell_a_new_port_from_a_new_address() -> None:
    assert cause(snat(packet(40000), 2000)) is PacketCause.NAT
    assert cause(dnat(packet(40000), "10.0.0.77")) is PacketCause.NAT


def test_a_new_address_is_off_by_the_same_in_all_flows() -> None:
    packets = [dnat(packet(old), "10.0.0.77") for old in OLD_PORTS]
    assert cause(*packets) is PacketCause.NEW_ADDRESS
    assert {judged(data).seen.difference for data in packets} == {2 * (77 - 2)}


def test_several_remote_ends_are_told_apart() -> None:
    """On the sender: each remote end has an address, and so a difference, of its own."""
    packets = [dnat(packet(old), f"10.0.0.{host}") for old in OLD_PORTS for host in (77, 99)]
    assert cause(*packets) is PacketCause.NEW_ADDRESS


def test_a_zero_that_nat_wrote_over_is_the_same_whatever_is_sent() -> None:
    packets = [packet(40000, payload).with_check(0xFFFF) for payload in (b"one", b"two", b"3")]
    assert cause(*packets) is PacketCause.ZERO


def test_differences_that_fit_no_nat_get_no_cause() -> None:
    """Several in one flow, or ports that no vxlan device would have used."""
    several = [packet(40000).with_check(check) for check in (1, 7, 99)]
    assert cause(*several) is PacketCause.UNKNOWN
    strange = [
        packet(old).with_check(check) for old, check in ((40000, 1), (50000, 2), (45000, 3))
    ]
    assert cause(*strange) is PacketCause.UNKNOWN


def test_senders_are_counted() -> None:
    packets = [snat(packet(old, host=host), 2000) for old in OLD_PORTS for host in (1, 1, 3)]
    (finding,) = tally(*packets).findings()
    assert list(finding.senders.values()) == [8, 4]
    assert finding.first.number == 1


def test_the_sure_comes_before_the_undecided_and_many_before_few() -> None:
    partial = packet(40000).with_check(0)  # healthy
    corrupt = packet(40000)
    corrupt = corrupt.with_bytes(corrupt.inner_end - 1, b"X")
    pseudo = checksum(packet(40000).data[12:20] + struct.pack("!HH", 17, len(corrupt.data) - 20))
    undecided = packet(40000).with_check(pseudo)
    packets = [undecided] * 3 + [corrupt.data] + [snat(packet(40000), 2000)] * 2 + [partial]
    found = [finding.diagnosis for finding in tally(*packets).findings()]
    assert found == [Diagnosis.REWRITTEN, Diagnosis.CORRUPT, Diagnosis.UNDECIDED]


def test_memory_is_bounded_and_nothing_goes_uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders can be invented."""
    monkeypatch.setattr(causes, "MANY_SENDERS", 5)
    result = tally(*(snat(packet(40000, host=host), 2000) for host in range(1, 21)))
    (finding,) = result.findings()
    assert finding.packets == result.diagnoses[Diagnosis.REWRITTEN] == 20
    assert len(finding.senders) == 6
    assert finding.senders[b""] == 15


# ------------------------------------------------------------- a direction that cannot be true


def partial_between(source: int, dest: int) -> bytes:
    """A packet whose outer field holds the sum of its pseudo-header."""
    addresses = bytes([10, 0, 0, source, 10, 0, 0, dest])
    tunnel = packet(40000).with_bytes(12, addresses)
    length = len(tunnel.data) - tunnel.udp
    return tunnel.with_check(checksum(addresses + struct.pack("!HH", 17, length)))


def right_between(source: int, dest: int) -> bytes:
    addresses = bytes([10, 0, 0, source, 10, 0, 0, dest])
    tunnel = packet(40000).with_bytes(12, addresses)
    return tunnel.with_check(judged(tunnel.data).seen.expected)


def assumed(direction: Direction, *packets: bytes) -> Tally:
    result = Tally(assumed=True)
    for number, data in enumerate(packets, start=1):
        result.add(judged(data, number, direction))
    result.settle()
    return result


def test_an_assumed_receiver_is_believed_if_the_packets_go_one_way() -> None:
    result = assumed(Direction.IN, partial_between(1, 2), partial_between(3, 2))
    assert result.diagnoses == {Diagnosis.NOT_FINISHED: 2}
    assert result.is_wrong


def test_the_answers_of_an_assumed_receiver_are_no_fault() -> None:
    """tcpdump without -Q in: the receiver's own packets are in the file, too."""
    result = assumed(Direction.IN, right_between(1, 2), *[partial_between(2, 1)] * 3)
    assert result.diagnoses == {Diagnosis.RIGHT: 1, Diagnosis.UNDECIDED: 3}
    assert (result.is_wrong, result.is_contradicted) == (False, True)


def test_an_assumed_sender_cannot_see_uncomputed_checksums_from_both_ends() -> None:
    fine = assumed(Direction.OUT, partial_between(1, 2), right_between(2, 1))
    assert fine.diagnoses == {Diagnosis.PARTIAL: 1, Diagnosis.RIGHT: 1}
    assert not fine.findings()
    both = assumed(Direction.OUT, partial_between(1, 2), partial_between(2, 1))
    assert both.diagnoses == {Diagnosis.UNDECIDED: 2}
